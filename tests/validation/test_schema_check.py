"""Findings of schemas: their words, their places, their number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from lora_quant.config.schema_files import load_schema
from lora_quant.errors import ConfigError
from lora_quant.findings import Finding, Severity
from lora_quant.validation.documents import opened
from lora_quant.validation.documents.document_check import check_document
from lora_quant.validation.documents.opened import open_document
from lora_quant.validation.documents.schema_check import (
    MOST_FINDINGS,
    QUICK_ITEMS,
    Depth,
    check_schema,
)
from lora_quant.validation.kinds import SCHEMA_NAMES, Kind

CASES = Path(__file__).parents[1] / "config" / "cases"
KINDS = {name: kind for kind, name in SCHEMA_NAMES.items()}
CONFIG = """\
adapter:
- name: tone
  lora_config: tone
use-case:
- name: both
  adapter_names: [tone]
  adapter_alphas: [1.0]
  model_name: model.onnx
"""


def findings_of(text: str, folder: Path, kind: Kind, suffix: str = ".json") -> tuple[Finding, ...]:
    path = folder / f"some{suffix}"
    path.write_text(text, encoding="utf-8")
    return check_schema(open_document(path), kind)


def case_files(kind: str) -> list[Any]:
    files = sorted(f for f in (CASES / kind).glob("*/*") if f.suffix in (".yaml", ".json"))
    return [pytest.param(f, id=f"{f.parent.name}/{f.stem}") for f in files]


@pytest.mark.parametrize("file", case_files("positive"))
def test_valid_cases_have_no_findings(file: Path) -> None:
    assert check_schema(open_document(file), KINDS[file.parent.name]) == ()


@pytest.mark.parametrize("file", case_files("negative"))
def test_broken_cases_have_findings_with_places(file: Path) -> None:
    findings = check_schema(open_document(file), KINDS[file.parent.name])
    assert findings
    for finding in findings:
        assert finding.rule == f"schema/{file.parent.name}"
        assert finding.severity is Severity.ERROR
        assert finding.where.file == file
        assert finding.where.line is not None
        assert finding.where.column is not None
        assert len(finding.message) < 250
        assert "schema accepts (" not in finding.message


@pytest.mark.parametrize(
    ("old", "new", "place", "field", "message", "hint"),
    [
        (
            "[1.0]",
            "['1.0']",
            (7, 20),
            "use-case[0].adapter_alphas[0]",
            "expected a number, got the text '1.0'",
            "remove the quotes",
        ),
        (
            "model_name:",
            "modelname:",
            (8, 3),
            "use-case[0].modelname",
            "unknown key 'modelname'",
            "did you mean 'model_name'?",
        ),
        (
            "name: both",
            "name: a/b",
            (5, 3),
            "use-case[0].name",
            "expected a name that can be a folder on every system, got the text 'a/b'",
            "the key stands for: Unique name; becomes a folder of the output.",
        ),
        (
            "lora_config: tone",
            "lora_config: 3",
            (3, 3),
            "adapter[0].lora_config",
            "expected text, an object or a list, got the number 3",
            None,
        ),
        (
            "lora_config: tone",
            "lora_config: {name: a, rank: 0, alpha: 1, target_modules: [q]}",
            (3, 26),
            "adapter[0].lora_config.rank",
            "expected a number of at least 1, got the number 0",
            "the key stands for: Rank r of the adapter.",
        ),
        (
            "lora_config: tone",
            "lora_config: {name: a, rank: '8', alpha: 1, target_modules: [q]}",
            (3, 26),
            "adapter[0].lora_config.rank",
            "expected a whole number, got the text '8'",
            "remove the quotes",
        ),
        (
            "adapter_names: [tone]",
            "adapter_names: tone",
            (6, 3),
            "use-case[0].adapter_names",
            "expected a list, got the text 'tone'",
            "put it in [ ]",
        ),
        (
            "[tone]",
            "[tone, tone]",
            (6, 3),
            "use-case[0].adapter_names",
            "expected each item once, got the text 'tone' again",
            "the key stands for: Names of the adapters; empty for the base alone.",
        ),
        (
            "name: both",
            "name: ''",
            (5, 3),
            "use-case[0].name",
            "expected text of at least 1 character(s), got the text ''",
            "the key stands for: Unique name; becomes a folder of the output.",
        ),
    ],
)
def test_words_of_a_person(
    tmp_path: Path,
    old: str,
    new: str,
    place: tuple[int, int],
    field: str,
    message: str,
    hint: str | None,
) -> None:
    assert old in CONFIG
    found = findings_of(CONFIG.replace(old, new), tmp_path, Kind.LORA_CONFIG, ".yaml")
    (only,) = found
    assert (only.message, only.hint, only.where.field) == (message, hint, field)
    assert (only.where.line, only.where.column) == place


def test_keys_that_exclude_each_other(tmp_path: Path) -> None:
    item = {"name": "a", "model_name": "m"}
    text = json.dumps(
        {"use_case": [item, {**item, "name": "b", "weights": "w", "lora_weights": "w"}]}
    )
    none, both = findings_of(text, tmp_path, Kind.IMPORTER_CONFIG)
    wanted = "expected one of the keys 'lora_weights' or 'weights', got"
    assert none.message == f"{wanted} none of them"
    assert both.message == f"{wanted} 'lora_weights' and 'weights'"
    assert both.where.field == "use_case[1]"


def test_a_huge_value_is_not_printed(tmp_path: Path) -> None:
    text = json.dumps({"name": "x" * 10_000, "rank": ["8"] * 10_000})
    for finding in findings_of(text, tmp_path, Kind.ADAPTER_PARAMS):
        assert len(finding.message) < 200


def test_many_problems_are_counted(tmp_path: Path) -> None:
    count = MOST_FINDINGS + 25
    text = json.dumps({f"module{i}": 1 for i in range(count)})
    findings = findings_of(text, tmp_path, Kind.ATTACH_POINTS)
    assert len(findings) == MOST_FINDINGS + 1
    assert findings[-1].message == "25 more problems in this file are not shown"


def entry(name: str, **more: Any) -> dict[str, Any]:
    fixed = {"enc_type": "PER_TENSOR", "dtype": "INT", "bw": 8, "is_sym": True}
    return {"name": name, **fixed, "scale": [0.1], "offset": [-128], **more}


def encodings(*entries: dict[str, Any]) -> str:
    return json.dumps(
        {"version": "1.0.0", "activation_encodings": [], "param_encodings": entries}, indent=1
    )


def test_entries_are_named_by_their_tensor(tmp_path: Path) -> None:
    text = encodings(entry("a"), entry("b", bw=0))
    (finding,) = findings_of(text, tmp_path, Kind.ENCODINGS_1_0_0)
    assert finding.where.tensor == "b"
    assert finding.where.field == "param_encodings[1].bw"


@pytest.mark.parametrize("bad", ["0.1", 0.0, -1, True, None, [0.1]])
def test_fast_check_of_numbers_agrees_with_the_validator(tmp_path: Path, bad: Any) -> None:
    scales = [0.1] * 99 + [bad]
    text = encodings(entry("a", enc_type="PER_CHANNEL", scale=scales, offset=[-128] * 100))
    by_us = findings_of(text, tmp_path, Kind.ENCODINGS_1_0_0)
    reference = Draft202012Validator(load_schema("aimet-encodings-1.0.0"))
    assert len(by_us) == len(list(reference.iter_errors(json.loads(text)))) == 1
    assert by_us[0].where.field == "param_encodings[0].scale[99]"


def test_fast_check_sees_bounds(tmp_path: Path) -> None:
    text = encodings(entry("a", enc_type="PER_CHANNEL", scale=[0.1] * 3, offset=[-128, 1, 0]))
    (finding,) = findings_of(text, tmp_path, Kind.ENCODINGS_1_0_0)
    assert finding.message == "expected a number of at most 0, got the number 1"


def test_quick_check_looks_at_both_ends(tmp_path: Path) -> None:
    entries = [entry(f"t{i}") for i in range(2 * QUICK_ITEMS + 5)]
    middle = QUICK_ITEMS + 2
    for index in (0, middle, len(entries) - 1):
        entries[index]["bw"] = 0
    path = tmp_path / "some.encodings"
    path.write_text(encodings(*entries), encoding="utf-8")
    document = open_document(path)

    def tensors(depth: Depth) -> list[str | None]:
        return [f.where.tensor for f in check_schema(document, Kind.ENCODINGS_1_0_0, depth)]

    last = f"t{len(entries) - 1}"
    assert tensors(Depth.FULL) == ["t0", f"t{middle}", last]
    assert tensors(Depth.QUICK) == ["t0", last]


def test_fragment(tmp_path: Path) -> None:
    good = {k: v for k, v in entry("a").items() if k != "name"}
    assert findings_of(json.dumps({"a": good}), tmp_path, Kind.ENCODINGS_FRAGMENT) == ()
    bad = {**good, "enc_type": "PER_ROW"}
    text = json.dumps({"a": good, "b": bad})
    (finding,) = findings_of(text, tmp_path, Kind.ENCODINGS_FRAGMENT)
    assert finding.rule == "schema/aimet-encodings-fragment"
    assert finding.where.tensor == "b"
    assert finding.message.startswith("expected 'PER_TENSOR', 'PER_CHANNEL', ")


def test_encodings_without_a_version_are_0_4_0(tmp_path: Path) -> None:
    text = '{"activation_encodings": {}, "param_encodings": {}}'
    assert findings_of(text, tmp_path, Kind.ENCODINGS_0_6_1) == ()


def test_the_reader_sees_what_the_schema_cannot(tmp_path: Path) -> None:
    path = tmp_path / "lora.yaml"
    path.write_text(CONFIG.replace("[1.0]", "[1.0, 0.5]"), encoding="utf-8")
    result = check_document(path)
    assert result.kind is Kind.LORA_CONFIG
    (finding,) = result.findings
    assert finding.rule == "document/invalid"
    assert finding.where.file == path
    assert finding.where.line == 7


def test_encodings_with_a_repeated_tensor(tmp_path: Path) -> None:
    path = tmp_path / "some.encodings"
    path.write_text(encodings(entry("a"), entry("a")), encoding="utf-8")
    (finding,) = check_document(path).findings
    assert finding.rule == "encodings/invalid"
    assert finding.where.tensor == "a"


@pytest.mark.parametrize(
    "scale",
    [10**400, -(10**400), [[[0.1]]], [[0.1], 0.2], "[" * 50 + "0.1" + "]" * 50, {}, []],
    ids=["huge", "negative", "deep", "ragged", "deeper", "object", "empty"],
)
@pytest.mark.parametrize("version", ["1.0.0", "2.0.0"])
def test_hostile_scales_never_raise(tmp_path: Path, scale: Any, version: str) -> None:
    value = json.loads(scale) if isinstance(scale, str) else scale
    path = tmp_path / "some.encodings"
    entries = {
        "1.0.0": {"param_encodings": [entry("a", scale=value)], "activation_encodings": []},
        "2.0.0": {"encodings": [{"name": "a", "output_dtype": "int8", "y_scale": value}]},
    }
    path.write_text(json.dumps({"version": version, **entries[version]}), encoding="utf-8")
    assert check_document(path).findings


def test_encodings_of_an_unknown_version(tmp_path: Path) -> None:
    path = tmp_path / "some.encodings"
    path.write_text('{"version": "9.0.0", "activation_encodings": []}', encoding="utf-8")
    result = check_document(path)
    assert result.kind is Kind.ENCODINGS_OTHER
    assert "'9.0.0' is not known" in result.findings[0].message


def test_warnings_of_a_reader_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "some.encodings"
    path.write_text(encodings(entry("a", note="x")), encoding="utf-8")
    (finding,) = check_document(path).findings
    assert finding.severity is Severity.WARNING
    assert finding.where.file == path


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"name": "a",\n "name": "b"}', 2),
        ('{"rank": NaN}', 1),
        ("{\n", 2),
        ('{"a": "\\ud800"}', 1),
    ],
)
def test_unreadable_json_is_a_finding(tmp_path: Path, text: str, line: int) -> None:
    path = tmp_path / "some.json"
    path.write_text(text, encoding="utf-8")
    result = check_document(path)
    assert result.kind is None
    (finding,) = result.findings
    assert finding.rule == "document/invalid"
    assert finding.where.file == path
    assert finding.where.line == line


def test_findings_name_the_file_as_it_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "hidden.json"
    path.write_text('{"name": 1, "rank": 2, "alpha": 3, "target_modules": ["q"]}')
    shown = Path("pack") / "adapter.json"
    (finding,) = check_document(path, shown=shown).findings
    assert finding.where.file == shown
    assert finding.where.line == 1


def test_large_json_is_checked_without_positions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(path: Path) -> Any:
        raise ConfigError("larger")

    monkeypatch.setattr(opened, "read_json_located", too_large)
    (finding,) = findings_of(encodings(entry("a", bw=0)), tmp_path, Kind.ENCODINGS_1_0_0)
    assert finding.where.line is None
    assert finding.where.field == "param_encodings[0].bw"


def test_a_key_of_another_file_of_the_flow_has_the_name_here_as_hint(tmp_path: Path) -> None:
    text = "use_case:\n- {name: a, model_name: m.onnx, encodings: e.json, output_path: o}\n"
    hints = [f.hint for f in findings_of(text, tmp_path, Kind.IMPORTER_CONFIG, ".yaml")]
    assert "here it is 'quant_overrides'" in hints


def test_a_layout_above_the_known_one_is_of_a_newer_lora_quant(tmp_path: Path) -> None:
    def hint(version: str) -> str:
        found = findings_of(f'{{"schema_version": {version}}}', tmp_path, Kind.REPORT)
        return next(f.hint or "" for f in found if f.where.field == "schema_version")

    assert "newer lora-quant" in hint("2")
    assert "newer" not in hint("0")
    assert "newer" not in hint('"2"')
