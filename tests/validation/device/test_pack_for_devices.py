"""What devices do not take of a pack, and its encodings against its graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from lora_quant.api import build
from lora_quant.config.lora_config import LoraConfig
from lora_quant.config.options import BuildOptions, EncodingsVersion, Mode
from lora_quant.findings import Finding, Severity
from lora_quant.validation.documents.schema_check import Depth
from lora_quant.validation.pack.check import check_pack
from lora_quant.validation.rule import Level
from tests.sample import CONFIG, CONFIG_ALL
from tests.validation.packs import edit_json, edit_manifest, rehash

ALPHA = "lora_alpha"


def further(pack: Path, *levels: Level) -> list[Finding]:
    """Findings of the levels beyond the form; none of a sound pack."""
    wanted = frozenset(levels or Level)
    return [
        f for f in check_pack(pack, levels=wanted) if f.rule.startswith(("device/", "encodings/"))
    ]


def test_a_pack_is_free_of_findings(built: Path) -> None:
    assert further(built) == []


@pytest.mark.slow
@pytest.mark.parametrize("version", ["0.6.1", "1.0.0", "2.0.0"])
@pytest.mark.parametrize("mode", ["none", "adapter_only", "all"])
def test_packs_of_every_mode_version_and_target_are_free_of_findings(
    mode: Mode, version: EncodingsVersion, tmp_path: Path
) -> None:
    config = CONFIG_ALL if mode == "all" else CONFIG
    targets = ("qairt", "onnxruntime", "qnn")
    options = BuildOptions(mode=mode, encodings_version=version, targets=targets)
    assert further(build(config, tmp_path / "pack", options).output) == []


def test_a_branch_tensor_without_an_encoding_is_a_warning(pack: Path) -> None:
    def edit(document: dict[str, Any]) -> None:
        given = document["activation_encodings"]
        kept = [e for e in given if not e["name"].endswith("lora_scale/Mul_output_0")]
        assert len(kept) < len(given)
        document["activation_encodings"] = kept

    for place in ("", "base/", "tone/", "both/"):
        name = f"{place}quant_overrides.json" if place else "base_encodings.json"
        edit_json(pack / "qairt" / name, edit)
    found = further(pack)
    assert {f.rule for f in found} == {"encodings/uncovered"}
    assert {f.where.use_case for f in found} == {None, "base", "tone", "both"}
    assert any("tensors of branches without an encoding" in f.message for f in found)


def test_encodings_of_another_graph_are_an_error(pack: Path) -> None:
    def edit(document: dict[str, Any]) -> None:
        document["activation_encodings"][0]["name"] += "_old"

    edit_json(pack / "qairt" / "tone" / "quant_overrides.json", edit)
    found = further(pack, Level.CROSS_FILE)
    errors = [f for f in found if f.severity is Severity.ERROR]
    assert [f.rule for f in errors] == ["encodings/not-in-graph"]
    assert errors[0].where.use_case == "tone"
    assert errors[0].where.line is not None


def test_levels_that_are_not_wanted_are_not_looked_at(pack: Path) -> None:
    def edit(document: dict[str, Any]) -> None:
        document["activation_encodings"][0]["name"] += "_old"

    edit_json(pack / "qairt" / "tone" / "quant_overrides.json", edit)
    assert further(pack, Level.SCHEMA) == []
    assert {f.rule for f in further(pack, Level.DEVICE)} == {"device/structure-differs"}


def test_a_build_checks_what_it_wrote_without_them(pack: Path) -> None:
    edit_json(
        pack / "qairt" / "tone" / "quant_overrides.json",
        lambda d: d["activation_encodings"][0].update(name="old"),
    )
    found = check_pack(pack, depth=Depth.QUICK)
    assert not [f for f in found if f.rule.startswith(("device/", "encodings/not"))]


@pytest.mark.parametrize("key", ["bw", "is_sym"])
def test_structure_that_differs_between_use_cases_is_an_error(key: str, pack: Path) -> None:
    def edit(document: dict[str, Any]) -> None:
        entry = document["activation_encodings"][3]
        if key == "bw":
            entry.update(bw=8, offset=[-128.0])
        else:
            entry.update(is_sym=True, offset=[-32768.0])

    edit_json(pack / "qairt" / "both" / "quant_overrides.json", edit)
    found = further(pack, Level.DEVICE)
    assert [(f.rule, f.where.use_case) for f in found] == [("device/structure-differs", "both")]
    assert "in 'base' and 'use case both'" in found[0].message


def test_a_strength_beyond_the_grid_of_its_input_is_a_warning(pack: Path) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        for use_case in manifest["use_cases"]:
            for slot in use_case["slots"]:
                slot["alpha"] = -1.0 if use_case["name"] == "tone" else slot["alpha"]

    edit_manifest(pack, edit)
    found = further(pack, Level.DEVICE)
    (clipped,) = (f for f in found if f.rule == "device/strength-clips")
    assert clipped.severity is Severity.WARNING
    assert clipped.message == "the strength -1 of 'tone', the input goes from 0 to 1"
    assert (clipped.where.use_case, clipped.where.adapter) == ("tone", "tone")


def test_one_slot_or_one_rank_is_an_error(pack: Path) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["max_rank"] = 1
        manifest["alpha"]["shape"] = [1]
        for use_case in manifest["use_cases"]:
            use_case["slots"] = []

    edit_manifest(pack, edit)
    found = [f for f in further(pack, Level.DEVICE) if f.rule == "device/endless-product"]
    assert [f.message for f in found] == [
        "the input 'lora_alpha' has one slot",
        "the largest rank is 1",
    ]


def test_weights_for_the_converter_are_no_inputs(pack: Path) -> None:
    path = pack / "qairt" / "model.onnx"
    model = onnx.load(str(path), load_external_data=False)
    stored = next(t for t in model.graph.initializer if "lora" in t.name)
    value = helper.make_tensor_value_info(stored.name, stored.data_type, list(stored.dims))
    model.graph.input.append(value)
    path.write_bytes(model.SerializeToString())
    rehash(pack)
    (found,) = (f for f in further(pack) if f.rule == "device/weight-is-input")
    assert found.severity is Severity.ERROR
    assert found.where.tensor == stored.name


def test_an_open_axis_of_a_graph_for_the_provider_is_an_error(
    small_config: LoraConfig, tmp_path: Path
) -> None:
    compiled = build(small_config, tmp_path / "pack", BuildOptions(targets=("qnn",))).output
    path = compiled / "qnn" / "model.onnx"
    model = onnx.load(str(path), load_external_data=False)
    (ids,) = (v for v in model.graph.input if v.name == "input_ids")
    ids.type.tensor_type.shape.dim[0].dim_param = "batch"
    path.write_bytes(model.SerializeToString())
    rehash(compiled)
    found = [f for f in further(compiled) if f.rule == "device/open-axis"]
    assert [f.message for f in found] == ["the input has the shape [?, 16]"]
    assert found[0].severity is Severity.ERROR
