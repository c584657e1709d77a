"""The manifest: stable bytes, rules between its parts, and how it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lora_quant.config.documents import dump_json, read_json
from lora_quant.config.finding_records import FindingRecord
from lora_quant.config.manifest import Manifest, read_manifest
from lora_quant.config.manifest_records import PackFile
from lora_quant.config.manifest_seal import seal_manifest
from lora_quant.errors import ConfigError, InputMissingError, Where
from lora_quant.findings import Finding, Severity

CASES = Path(__file__).parent / "cases" / "positive" / "pack"
EXAMPLE = CASES / "everything.json"
MERGED = CASES / "merged.json"


def refused(tmp_path: Path, value: Any) -> ConfigError:
    (tmp_path / "pack.json").write_text(dump_json(value))
    with pytest.raises(ConfigError) as caught:
        read_manifest(tmp_path)
    return caught.value


def test_read_and_dump_give_back_the_values() -> None:
    manifest = read_manifest(EXAMPLE)
    # `relayouts` and `slots` are empty in the example and stay: only what is None is left out.
    # So `tensors` of an attach point without a branch, `router`, `prompt` and `max_error` are.
    assert manifest.dump() == dump_json(ordered(read_json(EXAMPLE), manifest))


def ordered(value: Any, manifest: Manifest) -> Any:
    """The example's values in the order in which the models write them."""
    written = manifest.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert written == value
    return written


def test_keys_are_written_in_the_order_of_the_model() -> None:
    written = read_json(EXAMPLE)
    # A pack that is merged has nothing to switch, and one of a final graph builds no branches.
    others = {"merged", "merged_modules", "given_graph"}
    assert list(written) == [name for name in Manifest.model_fields if name not in others]


def test_a_folder_stands_for_its_manifest(tmp_path: Path) -> None:
    (tmp_path / "pack.json").write_bytes(EXAMPLE.read_bytes())
    assert read_manifest(tmp_path) == read_manifest(EXAMPLE)
    with pytest.raises(InputMissingError):
        read_manifest(tmp_path / "none")


def test_files_are_found_by_target_role_and_use_case() -> None:
    manifest = read_manifest(EXAMPLE)
    assert [f.path for f in manifest.files("qairt", role="graph")] == ["qairt/model.onnx"]
    assert [f.path for f in manifest.files("qairt", use_case="both")] == [
        "qairt/both/lora_weights.safetensors"
    ]
    assert [f.role for f in manifest.files("qairt", use_case="greeting")] == ["prompt"]
    assert len(manifest.files("qairt")) == 3
    assert manifest.files("qairt", role="weights", use_case="base") == ()
    with pytest.raises(ConfigError, match="holds nothing for the target 'ort'"):
        manifest.files("ort")


def test_a_newer_layout_says_so(tmp_path: Path) -> None:
    error = refused(tmp_path, {**read_json(EXAMPLE), "schema_version": 2, "more": 1})
    assert error.message == "the manifest has the layout 2, this version reads 1"
    assert error.hint == "update lora-quant, or build the pack again"
    assert error.where.line == 2


def test_slots_name_known_adapters(tmp_path: Path) -> None:
    value = read_json(EXAMPLE)
    value["use_cases"][1]["slots"][0]["adapter"] = "ton"
    error = refused(tmp_path, value)
    assert "use_cases[1].slots[0].adapter: the adapter 'ton' is not among" in error.message
    assert error.hint == "did you mean 'tone'?"


@pytest.mark.parametrize("start", [7, 9])
def test_slots_follow_each_other_within_the_max_rank(start: int, tmp_path: Path) -> None:
    value = read_json(EXAMPLE)
    value["use_cases"][1]["slots"][1]["start"] = start
    error = refused(tmp_path, value)
    assert f"the slot [{start}, {start + 4}) overlaps the one before it" in error.message


@pytest.mark.parametrize(
    ("layout", "shape", "told"),
    [
        ("slot", [1], "has 1 strengths, and the use case 'both' needs 2"),
        ("rank", [11], "has 11 strengths, and the use case 'both' needs 12"),
    ],
)
def test_every_slot_has_a_place_in_the_strengths(
    layout: str, shape: list[int], told: str, tmp_path: Path
) -> None:
    value = read_json(EXAMPLE)
    value["alpha"].update(layout=layout, shape=shape)
    error = refused(tmp_path, value)
    assert error.message.startswith(f"alpha.shape: the input {told}")
    assert error.hint == f"one for each {layout}"


@pytest.mark.parametrize("key", ["adapters", "attach_points", "use_cases", "tensors", "targets"])
def test_names_are_unique(key: str, tmp_path: Path) -> None:
    value = read_json(EXAMPLE)
    value[key].append(value[key][0])
    error = refused(tmp_path, value)
    name = value[key][0]["name"]
    index = len(value[key]) - 1
    assert error.message == f"{key}[{index}].name: the name {name!r} is already taken"


def test_paths_are_relative(tmp_path: Path) -> None:
    value = read_json(EXAMPLE)
    value["targets"][0]["files"][0]["path"] = "/tmp/x"
    error = refused(tmp_path, value)
    assert "the path '/tmp/x' is not relative with forward slashes" in error.message


def test_findings_hold_no_absolute_paths(tmp_path: Path) -> None:
    where = Where(file=tmp_path / "in" / "lora.yaml", line=3, adapter="x")
    finding = Finding("config/unused-adapter", Severity.NOTE, "unused", where, "remove it")
    record = FindingRecord.of(finding, relative_to=tmp_path / "out")
    assert record.model_dump(exclude_none=True) == {
        "rule": "config/unused-adapter",
        "severity": "note",
        "message": "unused",
        "where": {"file": "../in/lora.yaml", "line": 3, "adapter": "x"},
        "hint": "remove it",
    }
    assert FindingRecord.of(Finding("r", Severity.ERROR, "m")).where is None
    kept = FindingRecord.of(finding).where
    assert kept is not None
    assert kept.file == (tmp_path / "in" / "lora.yaml").as_posix()


def test_a_merged_pack_names_its_use_case() -> None:
    manifest = read_manifest(MERGED)
    assert (manifest.merged, manifest.merged_modules) == ("tone", 3)
    assert manifest.alpha is None
    assert manifest.tensors == ()
    assert read_manifest(EXAMPLE).merged is None


def test_what_an_adapter_does_not_have_is_left_out_or_empty() -> None:
    """So a manifest that knows none of it reads as one of plain low rank."""
    plain = read_manifest(MERGED)
    (adapter,) = plain.adapters
    assert (adapter.format, adapter.max_error) == ("peft", None)
    assert plain.use_cases[0].prompt is None
    assert not plain.use_cases[0].slots[0].gated
    written = plain.dump()
    for name in ("max_error", "prompt", "gate", "router"):
        assert f'"{name}":' not in written


def test_every_form_of_an_adapter_has_its_record() -> None:
    manifest = read_manifest(EXAMPLE)
    first, second = manifest.attach_points
    assert [v.vector for v in first.vectors] == ["h", "g", "c"]
    assert first.tensors is not None
    assert first.router is not None
    assert second.form == "embedding"
    assert second.tensors is None
    assert manifest.alpha is not None
    gate = manifest.alpha.gate
    assert gate is not None
    assert (gate.tensor, gate.dtype, gate.shape) == ("lora_alpha_gate", "float", (2,))
    assert [a.invocation_tokens for a in manifest.adapters] == [(), (5, 6), (), ()]
    assert [s.beyond_alpha for s in manifest.use_cases[1].slots] == [("g", "h", "c"), ()]
    assert [s.beyond_alpha for s in manifest.use_cases[2].slots] == [("prompt",)]
    assert [s.gated for s in manifest.use_cases[1].slots] == [False, True]
    assert [a.max_error for a in manifest.adapters] == [None, None, 0.04, None]
    prompt = manifest.use_cases[2].prompt
    assert prompt is not None
    assert (prompt.form, prompt.shape) == ("prefix_embeds", (4, 64))


@pytest.mark.parametrize("error", [-0.1, "0.1"])
def test_an_error_of_an_approximation_is_a_number_from_0(error: object, tmp_path: Path) -> None:
    value = read_json(EXAMPLE)
    value["adapters"][2]["max_error"] = error
    assert "adapters[2].max_error" in refused(tmp_path, value).message


def target_with(change: Any) -> Any:
    """The example, with a change to its target `onnxruntime`."""
    value = read_json(EXAMPLE)
    change(value["targets"][1])
    return value


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        (
            lambda t: t["inputs"].append(t["inputs"][2]),
            "targets[1].inputs[8].name: the name 'q.lora_A_quantized' is already taken",
            "names are unique here",
        ),
        (
            lambda t: t["inputs"][3].pop("of"),
            "targets[1].inputs[3]: the input 'q.lora_A_scale' is a scale, and does not say of what",
            "name the tensor in `of`",
        ),
        (
            lambda t: t.pop("fingerprint"),
            "targets[1].fingerprint: the target 'onnxruntime' has adapter files and no fingerprint "
            "of its graph",
            "without it, nothing tells whether an adapter is for this graph",
        ),
        (
            lambda t: t["inputs"].pop(0),
            "targets[1].inputs: the inputs of the target 'onnxruntime' with the role alpha are [], "
            "expected ['lora_alpha']",
            "the strengths of all slots are one input",
        ),
        (
            lambda t: t["alpha"].update(tensor="strengths"),
            "targets[1].inputs: the inputs of the target 'onnxruntime' with the role alpha are "
            "['lora_alpha'], expected ['strengths']",
            "the strengths of all slots are one input",
        ),
        (
            lambda t: t["inputs"][0].update(shape=[3]),
            "targets[1].inputs[0].shape: the strengths 'lora_alpha' are [3], expected [2] as "
            "`alpha` tells",
            "it is one input",
        ),
    ],
)
def test_the_inputs_of_a_target_add_up(
    change: Any, message: str, hint: str, tmp_path: Path
) -> None:
    error = refused(tmp_path, target_with(change))
    assert error.message == message
    assert error.hint == hint


def test_without_a_record_of_its_own_a_target_has_the_alpha_of_the_pack(tmp_path: Path) -> None:
    text = dump_json(target_with(lambda t: t.pop("alpha")))
    (tmp_path / "pack.json").write_text(seal_manifest(text))
    assert read_manifest(tmp_path).targets[1].alpha is None


def test_a_path_with_a_nul_is_refused() -> None:
    file = {"path": "a/\0", "role": "graph", "size": 1, "sha256": "0" * 64}
    with pytest.raises(ValidationError, match="path"):
        PackFile.model_validate(file)
