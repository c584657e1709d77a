"""What use cases of one graph must have in common, from the configurations that list them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper
from safetensors.numpy import load_file

from lora_quant.findings import Finding, Severity
from lora_quant.validation.device.by_kind import DEVICE
from lora_quant.validation.documents.document_check import check_document
from lora_quant.validation.request import EVERYTHING
from tests.sample import copy_sample, edit_json, edit_yaml
from tests.validation.packs import SAMPLE

IMPORTER = "lora_importer_config.yaml"
Folder = Path


def check(path: Path) -> list[Finding]:
    checked = check_document(path)
    assert checked.content is not None, checked.findings
    assert checked.kind is not None
    return list(DEVICE[checked.kind](checked, EVERYTHING))


@pytest.fixture
def qairt(built: Path, tmp_path: Path) -> Folder:
    """The folder for the vendor's tools, without the pack around it."""
    return Path(shutil.copytree(built / "qairt", tmp_path / "qairt"))


@pytest.mark.parametrize("name", ["lora_config.yaml", "lora_config_all.yaml"])
def test_configurations_of_the_sample_are_free_of_findings(name: str) -> None:
    assert check(SAMPLE / name) == []


def test_the_files_of_a_build_are_free_of_findings(qairt: Folder) -> None:
    assert check(qairt / IMPORTER) == []


def test_use_cases_of_a_configuration_may_not_differ_in_structure(tmp_path: Path) -> None:
    config = copy_sample(tmp_path)
    path = config.parent / "encodings" / "tone.encodings"
    name = "model.layers.0.self_attn.q_proj.weight"

    def edit(document: dict[str, Any]) -> None:
        for item in document["param_encodings"]:
            if item["name"] == name:
                item.update(bw=4, offset=[-8.0] * len(item["offset"]))

    edit_json(path, edit)
    (found,) = check(config)
    assert (found.rule, found.severity) == ("device/structure-differs", Severity.ERROR)
    assert found.message == "bits: 8 and 4 in 'base' and 'tone'"
    assert (found.where.use_case, found.where.tensor) == ("tone", name)
    assert found.where.file is not None
    assert found.where.file.name == "tone.encodings"


def test_many_differences_of_one_kind_are_one_finding(qairt: Folder) -> None:
    def edit(document: dict[str, Any]) -> None:
        for item in document["activation_encodings"]:
            item.update(bw=8, offset=[-128.0])

    edit_json(qairt / "tone" / "quant_overrides.json", edit)
    (found,) = check(qairt / IMPORTER)
    assert found.message.startswith("bits: 16 and 8 in 'base' and 'tone', for ")


def test_a_use_case_without_an_entry_of_the_others_is_an_error(qairt: Folder) -> None:
    def edit(document: dict[str, Any]) -> None:
        document["activation_encodings"].pop()

    edit_json(qairt / "tone" / "quant_overrides.json", edit)
    (found,) = check(qairt / IMPORTER)
    assert (found.rule, found.severity) == ("device/structure-differs", Severity.ERROR)
    assert "none in 'tone'" in found.message
    assert found.where.use_case == "tone"


def test_use_cases_of_different_graphs_are_a_warning(qairt: Folder) -> None:
    shutil.copy(qairt / "model.onnx", qairt / "other.onnx")

    def edit(document: dict[str, Any]) -> None:
        document["use_case"][1]["model_name"] = "other.onnx"

    path = edit_yaml(qairt / IMPORTER, edit)
    (found,) = check(path)
    assert (found.rule, found.severity) == ("device/graphs-differ", Severity.WARNING)
    assert found.message == "'tone' is of 'other.onnx', 'base' of 'model.onnx'"
    assert (found.where.field, found.where.use_case) == ("use_case[1].model_name", "tone")


def test_weights_that_are_inputs_of_the_graph_are_an_error(qairt: Folder) -> None:
    name = min(load_file(qairt / "tone" / "lora_weights.safetensors"))
    path = qairt / "model.onnx"
    model = onnx.load(str(path), load_external_data=False)
    (stored,) = (t for t in model.graph.initializer if t.name == name)
    model.graph.input.append(
        helper.make_tensor_value_info(name, stored.data_type, list(stored.dims))
    )
    path.write_bytes(model.SerializeToString())
    (found,) = check(qairt / IMPORTER)
    assert (found.rule, found.severity) == ("device/weight-is-input", Severity.ERROR)
    assert (found.where.file, found.where.tensor) == (path, name)


def test_the_files_for_the_context_generator_are_compared_per_graph(qairt: Folder) -> None:
    def rows(graph: str) -> list[dict[str, str]]:
        return [
            {
                "name": name,
                "graph": given,
                "weights": f"{name}/lora_weights.safetensors",
                "encodings": f"{name}/quant_overrides.json",
            }
            for name, given in (("tone", "part_1"), ("both", graph))
        ]

    edit_json(qairt / "both" / "quant_overrides.json", lambda d: d["activation_encodings"].pop())
    path = qairt / "lora_output_files.yaml"
    path.write_text(json.dumps({"use_case": rows("part_2")}), encoding="utf-8")
    assert check(path) == []
    path.write_text(json.dumps({"use_case": rows("part_1")}), encoding="utf-8")
    (found,) = check(path)
    assert (found.rule, found.where.use_case) == ("device/structure-differs", "both")


def test_files_that_are_missing_are_for_others_to_tell(qairt: Folder) -> None:
    (qairt / "tone" / "quant_overrides.json").unlink()
    (qairt / "tone" / "lora_weights.safetensors").write_bytes(b"")
    (qairt / "model.onnx").unlink()
    assert check(qairt / IMPORTER) == []
