"""Configurations of the importer and of the context generator against what they name."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_quant.findings import Finding, Severity
from lora_quant.validation.linked.importer_config import check_importer_config
from tests.sample import edit_yaml
from tests.validation.linked.linked_checks import findings, line_of, one

WEIGHTS = "tone/lora_weights.safetensors"


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """What a build wrote for the importer, without the manifest."""
    return Path(shutil.copytree(built / "qairt", tmp_path / "in"))


@pytest.fixture
def importer(folder: Path) -> Path:
    return folder / "lora_importer_config.yaml"


def output_files(folder: Path) -> Path:
    """The file for the context generator, as the importer would leave it."""
    path = folder / "lora_output_files.yaml"
    items = [
        f"- name: {name}\n  graph: model\n  weights: {name}/lora_weights.safetensors\n"
        f"  encodings: {name}/quant_overrides.json\n"
        for name in ("base", "tone", "both")
    ]
    path.write_text("use_case:\n" + "".join(items), encoding="utf-8")
    return path


def checked(path: Path, base: Path | None = None) -> list[Finding]:
    return findings(check_importer_config, path, base)


def test_what_a_build_wrote_has_no_findings(importer: Path) -> None:
    assert checked(importer) == []


def test_output_files_are_held_against_a_graph_only_if_one_is_given(folder: Path) -> None:
    path = output_files(folder)
    assert checked(path) == []
    assert checked(path, folder / "model.onnx") == []


def test_both_spellings_of_the_weights_are_read(importer: Path) -> None:
    text = importer.read_text(encoding="utf-8").replace("lora_weights:", "weights:")
    importer.write_text(text, encoding="utf-8")
    (importer.parent / WEIGHTS).unlink()
    finding = one(checked(importer), "importer/missing-file")
    assert finding.where.field == "use_case[1].weights"
    assert finding.where.line == line_of(importer, f"weights: {WEIGHTS}")


def test_paths_that_do_not_move_with_the_folder_are_told(importer: Path) -> None:
    moved = importer.parent.parent / "model.onnx"
    shutil.move(importer.parent / "model.onnx", moved)
    for data in importer.parent.glob("*.data"):
        shutil.move(data, moved.parent)

    def edit(document: dict[str, list[dict[str, str]]]) -> None:
        for use_case, path in zip(
            document["use_case"], (str(moved), "../model.onnx", "../model.onnx"), strict=True
        ):
            use_case["model_name"] = path

    edit_yaml(importer, edit)
    found = checked(importer)
    assert [f.rule for f in found] == ["importer/absolute-path", *["importer/outside"] * 2]
    assert found[0].where.line == line_of(importer, str(moved))
    assert found[0].severity is Severity.WARNING


def test_weights_of_another_graph_are_told_by_name_shape_and_type(importer: Path) -> None:
    path = importer.parent / WEIGHTS
    tensors = load_file(path)
    first, second, third = sorted(tensors)[:3]
    tensors["nowhere"] = tensors.pop(first)
    tensors[second] = tensors[second][:1]
    tensors[third] = tensors[third].astype(np.float16)
    save_file(tensors, path)
    found = checked(importer)
    unknown = one(found, "importer/weights-tensor")
    assert "1 of 29 tensors are no initializers of model.onnx: 'nowhere'" in unknown.message
    assert one(found, "importer/weights-shape").where.tensor == second
    assert one(found, "importer/weights-dtype").where.tensor == third
    # What differs from the graph is no news where use cases are compared: what is lacking is.
    assert repr(first) in one(found, "importer/weights-differ").message
    assert {f.where.line for f in found} == {line_of(importer, WEIGHTS)}


def test_use_cases_that_bring_different_tensors_are_told_without_a_graph(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    lost = max(tensors)
    del tensors[lost]
    save_file(tensors, folder / WEIGHTS)
    finding = one(checked(output_files(folder)), "importer/weights-differ")
    assert (finding.where.use_case, finding.where.tensor) == ("tone", lost)


def test_files_that_are_not_sound_are_told_with_the_place_inside(importer: Path) -> None:
    folder = importer.parent
    (folder / WEIGHTS).write_bytes(b"\xff" * 40)
    overrides = folder / "both" / "quant_overrides.json"
    overrides.write_text('{"version": "1.0.0",\n  x}', encoding="utf-8")
    found = checked(importer)
    assert [f.rule for f in found] == ["importer/bad-file"] * 2
    assert found[0].message.startswith(f"{WEIGHTS}: ")
    assert found[1].message.startswith("both/quant_overrides.json:2:3: ")
    assert found[1].where.line == line_of(importer, "both/quant_overrides.json")


def test_a_graph_that_cannot_be_read_is_told_once_for_all_use_cases(importer: Path) -> None:
    (importer.parent / "model.onnx").write_bytes(b"no graph")
    finding = one(checked(importer), "importer/bad-file")
    assert finding.where.field == "use_case[0].model_name"


def test_encodings_are_held_against_the_graph(importer: Path) -> None:
    overrides = importer.parent / "tone" / "quant_overrides.json"
    text = overrides.read_text(encoding="utf-8").replace('"logits"', '"lgits"')
    overrides.write_text(text, encoding="utf-8")
    found = checked(importer)
    assert found
    assert {f.where.line for f in found} == {line_of(importer, "tone/quant_overrides.json")}
    assert all(f.message.startswith("tone/quant_overrides.json:") for f in found)


def test_a_manifest_in_the_place_of_encodings_is_a_wrong_file(importer: Path) -> None:
    edit_yaml(importer, lambda d: d["use_case"][0].update(quant_overrides=importer.name))
    finding = one(checked(importer), "importer/wrong-file")
    assert "is lora_importer_config.yaml, expected AIMET encodings" in finding.message
