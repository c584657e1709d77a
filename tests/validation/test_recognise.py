"""What a document is follows from its content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_quant.config.documents import read_json, read_yaml
from lora_quant.findings import Severity
from lora_quant.validation.documents.recognise import recognise, unrecognised
from lora_quant.validation.kinds import SCHEMA_NAMES, Kind

TESTS = Path(__file__).parents[1]
CASES = TESTS / "config" / "cases"
KINDS = {name: kind for kind, name in SCHEMA_NAMES.items()}


def case_files(kind: str) -> list[Any]:
    files = sorted(f for f in (CASES / kind).glob("*/*") if f.suffix in (".yaml", ".json"))
    return [pytest.param(f, id=f"{f.parent.name}/{f.stem}") for f in files]


def read(path: Path) -> Any:
    return read_yaml(path) if path.suffix == ".yaml" else read_json(path)


@pytest.mark.parametrize("file", case_files("positive"))
def test_valid_documents_are_recognised_under_any_name(file: Path) -> None:
    value = read(file)
    kind = recognise(value, Path(f"some{file.suffix}"))
    assert kind is (KINDS[file.parent.name] if value else None)


@pytest.mark.parametrize("file", case_files("negative"))
def test_broken_documents_are_not_taken_for_something_else(file: Path) -> None:
    kind = recognise(read(file), file)
    family = file.parent.name.split("-")[0]
    assert kind is None or SCHEMA_NAMES.get(kind, "aimet").split("-")[0] == family


@pytest.mark.parametrize(
    "file", sorted((TESTS / "fixtures" / "aimet").rglob("*.encodings")), ids=lambda f: f.stem
)
def test_encodings_of_aimet_are_recognised(file: Path) -> None:
    value = read_json(file)
    version = value.get("version", "")
    start = f"AIMET encodings {version[:4]}" if isinstance(version, str) else ""
    kind = recognise(value, file)
    assert kind is not None
    assert kind.value.startswith(start)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"activation_encodings": {}, "param_encodings": {}}, Kind.ENCODINGS_0_6_1),
        ({"version": "0.5.0", "activation_encodings": {}}, Kind.ENCODINGS_0_6_1),
        ({"version": "2.1.0", "encodings": []}, Kind.ENCODINGS_OTHER),
        ({"version": "2.0.0", "encodings": []}, Kind.ENCODINGS_2_0_0),
        ({"activation_encodings": [], "param_encodings": []}, Kind.ENCODINGS_OTHER),
        ({"q.lora_A": {"bw": 8, "enc_type": "PER_TENSOR"}}, Kind.ENCODINGS_FRAGMENT),
        ({"layers.0.q_proj": ["/layers.0/q_proj/MatMul"]}, Kind.ATTACH_POINTS),
        ({"q": ["/q/MatMul"], "k": "/k/MatMul", "v": ["/v/MatMul"]}, Kind.ATTACH_POINTS),
        ({"peft_type": "IA3"}, Kind.PEFT_CONFIG),
        ({"r": 8, "lora_alpha": 16, "target_modules": ["q"]}, Kind.PEFT_CONFIG),
        ({"name": "a", "rank": 8, "target_modules": ["q"]}, Kind.ADAPTER_PARAMS),
        ({"name": "both"}, Kind.RUN_CONFIG),
        ({"name": "both", "adapters": [], "extra": 1}, Kind.RUN_CONFIG),
        ({"command": "build", "ok": True}, Kind.REPORT),
        ({"use_case": [{"name": "a", "graph": "g"}]}, Kind.OUTPUT_FILES),
        ({"use_case": [{"name": "a", "model_name": "m"}]}, Kind.IMPORTER_CONFIG),
        ({"use_case": [{"name": "a", "adapter_names": []}]}, Kind.LORA_CONFIG),
        ({"use-case": [{"name": "a", "lora_weights": "w"}]}, Kind.IMPORTER_CONFIG),
        ({"adapter": 3}, Kind.LORA_CONFIG),
        ({"name": "a", "version": "1.0.0"}, None),
        ({"hidden_size": 64, "vocab_size": 128}, None),
        ({}, None),
        ([], None),
        ("text", None),
        (None, None),
    ],
)
def test_content_decides(value: Any, kind: Kind | None) -> None:
    assert recognise(value, Path("some.json")) is kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [("lora_output_files.yaml", Kind.OUTPUT_FILES), ("some.yaml", Kind.IMPORTER_CONFIG)],
)
def test_the_name_decides_between_equal_candidates(name: str, kind: Kind) -> None:
    assert recognise({"use_case": [{"name": "a"}]}, Path(name)) is kind


def test_the_name_alone_decides_nothing() -> None:
    assert recognise({"hidden_size": 64}, Path("lora_config.yaml")) is None


def test_unknown_document_is_told_what_was_looked_for() -> None:
    value = {f"key{i}": i for i in range(7)} | {"x" * 100: 0}
    finding = unrecognised(Path("a.json"), value, severity=Severity.ERROR)
    assert finding.rule == "recognise/unknown"
    assert finding.where.file == Path("a.json")
    assert "the keys 'key0', 'key1', 'key2', 'key3', 'key4' and 3 more" in finding.message
    assert finding.hint is not None
    assert "lora_config.yaml (adapter, use-case)" in finding.hint
