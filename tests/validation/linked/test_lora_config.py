"""A configuration against everything that it names, and against what a build would say."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_quant.findings import Finding, Severity
from lora_quant.validation.linked.lora_config import check_lora_config
from tests.final_graphs import lora_config as final_config
from tests.sample import (
    CONFIG,
    CONFIG_ALL,
    SAMPLE,
    Document,
    edit_json,
    edit_yaml,
    keep_use_cases,
    make_float,
    tree,
)
from tests.validation.linked.linked_checks import findings, line_of, one, serious

QUERY = "model.layers.0.self_attn.q_proj"


def checked(config: Path, base: Path | None = None) -> list[Finding]:
    return findings(check_lora_config, config, base)


def rules(found: list[Finding]) -> list[str]:
    return [f.rule for f in found]


@pytest.fixture
def small(sample: Path) -> Path:
    """The sample with a base and two adapters, without encodings: the quickest to build."""
    return make_float(keep_use_cases(sample, ["base", "tone", "legal"]))


def test_a_sound_configuration_has_no_findings_and_nothing_is_written() -> None:
    before = tree(SAMPLE)
    assert checked(CONFIG) == []
    assert tree(SAMPLE) == before


def test_use_cases_with_graphs_of_their_own_are_taken_apart_as_in_a_build() -> None:
    found = checked(SAMPLE / "lora_config_exported.yaml")
    assert rules(found) == ["exported/read-as-rslora"]


def test_options_that_encodings_call_for_are_a_note_at_the_encodings() -> None:
    finding = one(checked(CONFIG_ALL), "config/needs-options")
    assert finding.severity is Severity.NOTE, "a build with these options works"
    assert finding.message.startswith("a build needs --mode all: encodings_all/tone.encodings: ")
    assert finding.where.file == CONFIG_ALL
    assert finding.where.field == "use-case[1].quant_overrides"
    assert finding.where.line == line_of(CONFIG_ALL, "tone.encodings")


def test_a_graph_that_is_final_needs_an_option_and_is_no_error(tmp_path: Path) -> None:
    config = final_config(tmp_path / "in", encodings=None)
    finding = one(checked(config), "config/needs-options")
    assert finding.message.startswith("a build needs --no-create-lora-graph: ")


def test_every_missing_file_is_told_at_the_line_that_names_it(sample: Path) -> None:
    (sample.parent / "encodings" / "tone.encodings").unlink()
    shutil.rmtree(sample.parent / "adapters" / "legal")
    (sample.parent / "attach_points.json").unlink()

    def misspell(document: Document) -> None:
        for use_case in document["use-case"]:
            use_case["model_name"] = "model/modle.onnx"

    edit_yaml(sample, misspell)
    found = checked(sample)
    assert rules(found) == ["config/missing-file"] * 4
    assert [f.where.line for f in found] == [
        line_of(sample, "adapters/legal"),
        line_of(sample, "attach_points.json"),
        line_of(sample, "modle.onnx"),
        line_of(sample, "tone.encodings"),
    ]
    assert "did you mean 'model.onnx'?" in (found[2].hint or "")


def test_a_folder_in_the_place_of_a_graph_is_a_wrong_file(small: Path) -> None:
    edit_yaml(small, lambda d: [u.update(model_name="model") for u in d["use-case"]])
    finding = one(checked(small), "config/wrong-file")
    assert finding.message == "'model' is a folder, and no file: the graph of 'base'"


def test_problems_inside_of_several_files_are_told_together_with_their_places(
    sample: Path,
) -> None:
    folder = sample.parent
    (folder / "attach_points.json").write_text('{"a": [1]}', encoding="utf-8")
    broken = folder / "encodings" / "both.encodings"
    broken.write_text(broken.read_text(encoding="utf-8")[:200], encoding="utf-8")
    tensors = folder / "adapters" / "style" / "adapter_model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:100])
    found = checked(sample)
    adapter = one(found, "config/adapter")
    assert adapter.where.adapter == "style"
    assert adapter.message.startswith("adapters/style/adapter_model.safetensors: ")
    files = [f for f in found if f.rule == "config/bad-file"]
    assert [f.where.line for f in files] == [
        line_of(sample, "attach_points.json"),
        line_of(sample, "both.encodings"),
    ]
    assert files[0].message.startswith("attach_points.json:1:8: ")
    assert files[1].message.startswith("encodings/both.encodings:13:4: ")
    assert len(found) == 3


def test_a_file_of_another_kind_is_told_by_what_it_is(sample: Path) -> None:
    edit_yaml(
        sample,
        lambda d: d["use-case"][1].update(quant_overrides="adapters/tone/adapter_config.json"),
    )
    finding = one(checked(sample), "config/wrong-file")
    assert "is PEFT adapter_config.json, expected AIMET encodings" in finding.message
    assert finding.where.field == "use-case[1].quant_overrides"


def test_every_field_of_an_adapter_json_that_contradicts_the_weights_is_told(small: Path) -> None:
    edit_yaml(
        small,
        lambda d: d["adapter"][0].update(
            lora_config=["adapters/tone", "adapter_params/legal.json"]
        ),
    )
    found = [f for f in checked(small) if f.rule == "config/adapter-params"]
    assert len(found) == 3
    assert "rank is declared as 8, expected 4" in found[0].message
    assert "alpha is declared as 16, expected 8" in found[1].message
    assert "target_modules declares 'k_proj'" in found[2].message
    assert {f.where.field for f in found} == {"adapter[0].lora_config[1]"}


def test_all_modules_without_a_node_are_told_for_each_adapter(small: Path) -> None:
    mapping = small.parent / "attach_points.json"
    edit_json(mapping, lambda d: d.update({QUERY: ["/nowhere"]}))
    found = checked(small)
    unknown = one(found, "attach-points/unknown-node")
    assert unknown.message.startswith("attach_points.json:1:")
    assert unknown.where.line == line_of(small, "attach_points.json")
    modules = [f for f in found if f.rule == "config/modules"]
    assert [f.where.adapter for f in modules] == ["tone", "legal"]
    assert all(QUERY in f.message for f in modules)
    assert len(found) == 3


def test_a_list_of_tensors_that_the_mode_fixes_is_a_warning_of_the_pass(sample: Path) -> None:
    listed = sample.parent / "quant_updatable" / "tone.txt"
    listed.write_text(listed.read_text(encoding="utf-8") + "logits\nnowhere\n", encoding="utf-8")
    found = serious(checked(keep_use_cases(sample, ["base", "tone"])))
    assert sorted(rules(found)) == ["updatable/fixed-in-mode", "updatable/unknown-tensor"]
    assert {f.where.file for f in found} == {listed}


def test_two_graphs_without_a_base_are_told_as_such(small: Path) -> None:
    copy = small.parent / "model" / "other.onnx"
    shutil.copy(small.parent / "model" / "model.onnx", copy)

    def without_base(document: Document) -> None:
        document["use-case"] = document["use-case"][1:]
        document["use-case"][0]["model_name"] = "model/other.onnx"

    edit_yaml(small, without_base)
    finding = one(checked(small), "config/no-base")
    assert finding.where.line == line_of(small, "other.onnx")


def test_a_base_without_its_weights_is_a_bad_file_once(small: Path) -> None:
    (small.parent / "model" / "model.data").unlink()
    finding = one(checked(small), "config/bad-file")
    assert "the external data file 'model.data' of the graph does not exist" in finding.message
    assert finding.where.line == line_of(small, "model.onnx")


def test_another_refusal_of_a_build_is_told_at_the_use_case(small: Path) -> None:
    other = small.parent / "model" / "other.onnx"
    other.write_bytes((small.parent / "model" / "model.onnx").read_bytes())
    edit_yaml(small, lambda d: d["use-case"][1].update(model_name="model/other.onnx"))
    finding = one(checked(small), "config/build-refused")
    assert finding.where.line == line_of(small, "other.onnx")
    assert finding.where.use_case == "tone"


def test_an_adapter_with_nan_is_refused_before_a_build_writes_anything(small: Path) -> None:
    path = small.parent / "adapters" / "tone" / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    tensors[name][0, 0] = np.nan
    save_file(tensors, path)
    finding = one(checked(small), "config/adapter")
    assert "not finite" in finding.message
    assert finding.where.tensor == name


def test_a_base_of_the_request_stands_in_for_the_one_that_is_named(small: Path) -> None:
    base = small.parent / "model"
    moved = small.parent / "elsewhere"
    base.rename(moved)
    assert rules(checked(small)) == ["config/missing-file"]
    assert checked(small, base=moved / "model.onnx") == []
