"""What holds for every use case and mode: completeness, coverage, and what may differ."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lora_quant.api import build
from lora_quant.config.options import BuildOptions
from lora_quant.errors import EncodingsError
from lora_quant.findings import Severity
from tests.conftest import Packs
from tests.passes.test_expected_encodings import (
    ADAPTED,
    BASE,
    branch_names,
    branch_tensors,
    given,
    listed,
    overrides,
    ranks_of,
)
from tests.sample import CONFIG, MODULES, Document, edit_json, tree

MODES = ("none", "adapter_only", "all")


def ends(entry: Document) -> tuple[float, float]:
    """Range of a per-tensor entry, real units."""
    (scale,), (offset,) = entry["scale"], entry["offset"]
    return offset * scale, (offset + 2 ** entry["bw"] - 1) * scale


@pytest.mark.parametrize("mode", MODES)
def test_every_updatable_tensor_has_an_encoding_and_nothing_else_differs(
    mode: str, packs: Packs
) -> None:
    pack = packs(mode).output
    found = {name: overrides(pack, name) for name in ADAPTED}
    lists = {name: set(listed(pack, name)) for name in ADAPTED}
    for name in ADAPTED:
        assert lists[name] <= set(found[name])
    differing = set()
    for one, other in combinations(ADAPTED, 2):
        assert found[one].keys() == found[other].keys()
        different = {t for t in found[one] if found[one][t] != found[other][t]}
        assert different <= lists[one] & lists[other]
        differing |= different
    assert bool(differing) == (mode != "none")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("use_case", list(ADAPTED))
def test_only_scale_and_offset_differ_from_the_base(mode: str, use_case: str, packs: Packs) -> None:
    pack = packs(mode).output
    base = entries_without_grid(pack / "qairt" / "base_encodings.json")
    case = entries_without_grid(pack / "qairt" / use_case / "quant_overrides.json")
    assert case == base


def entries_without_grid(path: Path) -> dict[str, Document]:
    document = json.loads(path.read_text(encoding="utf-8"))
    return {
        e["name"]: {
            **{k: v for k, v in e.items() if k not in ("scale", "offset")},
            "section": section,
            "sizes": (len(e["scale"]), len(e["offset"])),
        }
        for section in ("activation_encodings", "param_encodings")
        for e in document[section]
    }


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("use_case", list(ADAPTED))
def test_weight_grids_cover_the_values_that_were_written(
    mode: str, use_case: str, packs: Packs
) -> None:
    """Within half a step: AIMET took min and max of the same values, so that rounding to the grid
    is all that is lost. 1e-6 of a step is the float32 rounding of AIMET's scales (2**-24)."""
    pack = packs(mode).output
    found = overrides(pack, use_case)
    weights = load_file(pack / "qairt" / use_case / "lora_weights.safetensors")
    assert len(weights) == 2 * len(MODULES) + 1
    for name, values in weights.items():
        scale = np.array(found[name]["scale"])  # one per column: [in, R], [R, out], [slots, R]
        assert scale.shape == (values.shape[1],)
        steps = values.astype(np.float64) / scale
        assert steps.min() >= -128.5 - 1e-4, name
        assert steps.max() <= 127.5 + 1e-4, name


def test_none_is_the_union_of_the_ranges(packs: Packs) -> None:
    found = overrides(packs("none").output, "base")
    use_cases = [name for name in ADAPTED if name != "base"]
    for module in MODULES:
        names = branch_names(module)
        active = [u for u in use_cases if module in ADAPTED[u]]
        # A: symmetric, so the widest scale that a use case has at each rank.
        scales: dict[int, float] = {}
        for use_case in active:
            source = given(use_case)[names["A"][0]]["scale"]
            for rank, scale in zip(ranks_of(use_case, module), source, strict=True):
                scales[rank] = max(scale, scales.get(rank, 0.0))
        got = found[names["A"][1]]["scale"]
        assert {rank: got[rank] for rank in scales} == scales
        assert {got[r] for r in range(12) if r not in scales} <= {max(scales.values())}
        for role in ("a", "m", "l"):
            ranges = [ends(given(u)[names[role][0]]) for u in active]
            factor = 2.0 if role == "m" else 1.0
            if active and module == "model.layers.1.mlp.down_proj" and "style" in active:
                low, high = ranges[active.index("style")]
                ranges[active.index("style")] = (low * factor, high * factor)
            low, high = ends(found[names[role][1]])
            assert low <= min(r[0] for r in ranges)
            assert high >= max(r[1] for r in ranges)
            # Not wider than it has to be: a whole offset costs at most one step on each side.
            widest = max(r[1] for r in ranges) - min(r[0] for r in ranges)
            assert high - low <= widest * (1 + 3 / 65535), (module, role)


def test_none_tells_of_the_union_and_strict_none_refuses(packs: Packs, sample: Path) -> None:
    united = [f for f in packs("none").findings if f.rule == "encodings/united"]
    assert [f.severity for f in united] == [Severity.NOTE]
    assert "branch tensors got the union of the ranges of all use cases" in united[0].message
    with pytest.raises(EncodingsError, match="are given different encodings by different use") as e:
        build(sample, sample.parent / "out", BuildOptions(mode="none", strict_none=True))
    assert e.value.where.tensor in set(branch_tensors())
    assert e.value.hint is not None
    assert "--strict-none" in e.value.hint
    assert not (sample.parent / "out").exists()


def test_idle_branches_keep_the_base_s_encodings(packs: Packs) -> None:
    pack = packs("adapter_only").output
    tone = overrides(pack, "tone")
    base = overrides(pack, "base")
    for module in set(MODULES) - set(ADAPTED["tone"]):
        for role in ("A", "B", "a", "m", "l"):
            name = branch_names(module)[role][1]
            assert tone[name] == base[name]


def test_a_fixed_tensor_that_disagrees_is_an_error_or_a_finding(sample: Path) -> None:
    tensor = "/model/layers.1/self_attn/o_proj/MatMul_output_0"

    def widen(document: Document) -> None:
        for entry in document["activation_encodings"]:
            if entry["name"] == "logits":
                entry["scale"] = [entry["scale"][0] * 2]
            if entry["name"] == tensor:
                entry["scale"] = [entry["scale"][0] * 3]

    file = edit_json(sample.parent / "encodings" / "tone.encodings", widen)
    out = sample.parent / "out"
    with pytest.raises(EncodingsError, match="disagree with the base's on tensors that") as caught:
        build(sample, out)
    assert (caught.value.where.use_case, caught.value.where.file) == ("tone", file)
    assert caught.value.hint is not None
    assert "--fixed-conflict base" in caught.value.hint
    assert not out.exists()

    result = build(sample, out, BuildOptions(fixed_conflict="base"))
    conflicts = [f for f in result.findings if f.rule == "encodings/fixed-tensor-differs"]
    assert [f.where.use_case for f in conflicts] == ["tone"]
    assert repr(tensor) in conflicts[0].message
    assert "'logits'" in conflicts[0].message
    for name in (tensor, "logits"):
        assert overrides(out, "tone")[name] == BASE[name]


def test_an_h_that_disagrees_is_found_too(sample: Path) -> None:
    """o_proj of tone has no branch: its node is the base's. That of q_proj is h."""
    h = "/model/layers.1/self_attn/q_proj/MatMul_output_0"

    def widen(document: Document) -> None:
        for entry in document["activation_encodings"]:
            if entry["name"] == h:
                entry["scale"] = [entry["scale"][0] * 3]

    edit_json(sample.parent / "encodings" / "tone.encodings", widen)
    with pytest.raises(EncodingsError, match="1 encodings of use cases disagree") as caught:
        build(sample, sample.parent / "out")
    assert caught.value.where.tensor == h + "_base"


def test_more_than_scale_and_offset_may_not_differ(sample: Path) -> None:
    """16 bits for one B in one use case, 8 in the others."""
    name = "base_model.model.layers.0.self_attn.q_proj.lora_B.weight"

    def widen(document: Document) -> None:
        for entry in document["param_encodings"]:
            if entry["name"] == name:
                entry["bw"] = 16
                entry["offset"] = [-32768] * len(entry["offset"])

    edit_json(sample.parent / "encodings" / "legal.encodings", widen)
    for mode in ("none", "adapter_only"):
        with pytest.raises(EncodingsError, match="bits: 8 and 16") as caught:
            build(sample, sample.parent / "out", BuildOptions(mode=mode))
        assert caught.value.where.use_case == "legal"
        assert caught.value.where.tensor == "model.layers.0.self_attn.q_proj.lora_B.weight"


def test_lists_are_compared_in_both_directions(sample: Path) -> None:
    path = sample.parent / "quant_updatable" / "tone.txt"
    lines = path.read_text(encoding="utf-8").splitlines()
    dropped = "/model/layers.0/self_attn/q_proj/lora_A.0/MatMul_output_0"
    lines.remove(dropped)
    lines += ["logits", "no_such_tensor"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = {f.rule: f for f in build(sample, sample.parent / "out").findings}
    assert set(found) == {
        "updatable/unknown-tensor",
        "updatable/fixed-in-mode",
        "updatable/not-listed",
    }
    assert "'no_such_tensor'" in found["updatable/unknown-tensor"].message
    assert found["updatable/fixed-in-mode"].message == (
        "1 tensors of the list are fixed in mode adapter_only: 'logits'"
    )
    assert "'/model/layers.0/self_attn/q_proj/lora_A/MatMul_output_0'" in (
        found["updatable/not-listed"].message
    )
    assert {f.where.file for f in found.values()} == {path}
    assert {f.where.use_case for f in found.values()} == {"tone"}


def test_a_list_that_is_not_there_is_noted(sample: Path) -> None:
    """The format takes it for none; it may be a slip."""
    path = sample.parent / "quant_updatable" / "tone.txt"
    path.unlink()
    (found,) = build(sample, sample.parent / "out").findings
    assert (found.rule, found.severity) == ("updatable/no-list", Severity.NOTE)
    assert (found.where.file, found.where.use_case) == (path, "tone")


def test_lists_of_the_sample_agree(packs: Packs) -> None:
    for name in ("adapter_only", "all"):
        assert packs(name).findings == ()
    rules = {f.rule for f in packs("none").findings}
    assert rules == {"updatable/fixed-in-mode", "encodings/united"}


def test_the_mode_changes_no_weight(packs: Packs) -> None:
    first = tree(packs("adapter_only").output)
    weights = [n for n in first if n.endswith((".safetensors", ".onnx", ".data"))]
    assert len(weights) == len(ADAPTED) + 3
    for name in ("none", "all", "2.0.0", "float"):
        other = tree(packs(name).output)
        assert all(other[n] == first[n] for n in weights)
    assert CONFIG.is_file()
