"""What makes the folder of a pack a model folder of ONNX Runtime GenAI, and the fingerprint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lora_quant.api import BuildResult
from lora_quant.errors import ConfigError, InputMissingError
from lora_quant.graph.files.external_data import DataFile
from lora_quant.targets.files.fingerprint import fingerprint
from tests.mixes import graph_of, mixed

CONFIG: dict[str, Any] = {
    "model": {"decoder": {"filename": "model.onnx", "hidden_size": 8}, "vocab_size": 1},
    "search": {"max_length": 16},
}


def model_folder(folder: Path, name: str = "model.onnx", **changes: Any) -> Path:
    """A base with a configuration, a tokenizer, and something that is part of neither."""
    folder.mkdir()
    shutil.copy(graph_of("llama"), folder / name)
    text = json.dumps(CONFIG | changes, indent=4) + "\n"
    (folder / "genai_config.json").write_text(text, encoding="utf-8")
    (folder / "tokenizer.json").write_text('{"ä": 1}', encoding="utf-8")
    (folder / "notes.txt").write_text("of nobody's concern", encoding="utf-8")
    return folder / name


def packed(base: Path, **options: Any) -> BuildResult:
    options = {"targets": ("onnxruntime",), **options}
    return mixed(base.parents[1] / "pack", base, {"it": {"lora_rslora": 1.0}}, **options)


def companions(result: BuildResult) -> dict[str, bytes]:
    (target,) = result.manifest.targets
    return {
        Path(file.path).name: (result.output / file.path).read_bytes()
        for file in target.files
        if file.role == "companion"
    }


@pytest.mark.parametrize("options", [{}, {"merge": "it"}])
def test_configuration_and_tokenizer_go_along(options: dict[str, Any], tmp_path: Path) -> None:
    base = model_folder(tmp_path / "model folder ö")
    found = companions(packed(base, **options))
    assert found.keys() == {"genai_config.json", "tokenizer.json"}
    assert all((base.parent / name).read_bytes() == data for name, data in found.items())


def test_the_configuration_names_the_graph_of_the_pack(tmp_path: Path) -> None:
    decoder = {"decoder": {"filename": "base_q4.onnx", "hidden_size": 8}, "vocab_size": 1}
    base = model_folder(tmp_path / "model", "base_q4.onnx", model=decoder)
    written = json.loads(companions(packed(base))["genai_config.json"])
    assert written == CONFIG


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ({"decoder": {"filename": "other.onnx"}}, "'other.onnx'"),
        ({"decoder": {"pipeline": []}}, "None"),
        ({"decoder": []}, "None"),
        ([], "None"),
    ],
)
def test_a_configuration_of_another_graph_is_left_with_a_note(
    model: Any, named: str, tmp_path: Path
) -> None:
    result = packed(model_folder(tmp_path / "model", model=model))
    assert companions(result) == {}
    (note,) = (f for f in result.findings if f.rule == "onnxruntime/companions")
    assert f"it names the graph {named}, and the base is 'model.onnx'" in note.message


def test_a_graph_beside_its_base_is_no_model_folder(tmp_path: Path) -> None:
    result = packed(model_folder(tmp_path / "model"), beside_base=True)
    assert companions(result) == {}
    (note,) = (f for f in result.findings if f.rule == "onnxruntime/companions")
    assert "beside the base" in note.message


def test_a_configuration_that_is_not_json_is_refused(tmp_path: Path) -> None:
    base = model_folder(tmp_path / "model")
    (base.parent / "genai_config.json").write_text("{'model': 1}", encoding="utf-8")
    with pytest.raises(ConfigError, match="the text is not JSON") as caught:
        packed(base)
    assert caught.value.where.file == base.parent / "genai_config.json"


def test_a_base_without_a_configuration_has_no_companions(tmp_path: Path) -> None:
    result = mixed(
        tmp_path / "pack",
        graph_of("llama"),
        {"it": {"lora_rslora": 1.0}},
        targets=("onnxruntime",),
    )
    assert companions(result) == {}
    assert not [f for f in result.findings if f.rule.startswith("onnxruntime/")]


def data_file(folder: Path, data: bytes, location: str = "w.data") -> DataFile:
    path = folder / "stored"
    path.write_bytes(data)
    return DataFile(location, path, len(data))


def test_a_fingerprint_depends_on_the_graph_and_on_every_data_file(tmp_path: Path) -> None:
    data = data_file(tmp_path, b"weights")
    first = fingerprint(b"graph", [data])
    assert 0 <= first < 2**31
    assert fingerprint(b"graph", [data]) == first
    others = [
        fingerprint(b"grapH", [data]),
        fingerprint(b"graph", []),
        fingerprint(b"graph", [data, data]),
        fingerprint(b"graph", [data_file(tmp_path, b"weights", "v.data")]),
        fingerprint(b"graph", [data_file(tmp_path, b"Weights")]),
    ]
    assert len({first, *others}) == len(others) + 1


def test_a_data_file_that_is_gone_is_an_error(tmp_path: Path) -> None:
    data = data_file(tmp_path, b"weights")
    data.path.unlink()
    with pytest.raises(InputMissingError):
        fingerprint(b"graph", [data])
