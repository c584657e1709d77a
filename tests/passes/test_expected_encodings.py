"""The overrides of the sample, worked out by hand from its input files.

In the files A and B of a use case are those of the vendor's graph: `lora_A.0 -> mul_scale ->
lora_B.0 -> add_lora_to_res`, weights `base_model.<module>.lora_A.weight`. Numbers are compared
bit for bit: moving and renaming must not change one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Packs
from tests.sample import (
    FOLDED,
    MAX_RANK,
    MODULES,
    SAMPLE,
    SCALES,
    STYLE,
    TONE,
    Document,
    entries,
    path_of,
)

BASE = entries(SAMPLE / "encodings" / "base.encodings")
ADAPTED = {"base": (), "tone": TONE, "legal": MODULES, "style": STYLE, "both": MODULES}
# Ranks that a use case fills at a module; None: the module has no such adapter.
TONE_RANKS, LEGAL_ALONE, LEGAL_BEHIND_TONE = range(4), range(8), range(4, 12)
E, S, ALPHA = "lora_alpha.expansion", "/lora_alpha/MatMul_output_0", "lora_alpha"


def overrides(pack: Path, use_case: str) -> dict[str, Document]:
    return entries(pack / "qairt" / use_case / "quant_overrides.json")


def given(use_case: str, folder: str = "encodings") -> dict[str, Document]:
    return entries(SAMPLE / folder / f"{use_case}.encodings")


def listed(pack: Path, use_case: str) -> list[str]:
    path = pack / "qairt" / use_case / "quant_updatable_tensors.txt"
    return path.read_text(encoding="utf-8").splitlines()


def without_name(entry: Document) -> Document:
    return {key: value for key, value in entry.items() if key != "name"}


def ranks_of(use_case: str, module: str) -> list[int]:
    if use_case == "tone":
        return list(TONE_RANKS)
    if use_case == "legal":
        return list(LEGAL_ALONE)
    if use_case == "style":
        return list(range(3 if module == "model.layers.0.mlp.down_proj" else 6))
    return [*(TONE_RANKS if module in TONE else ()), *LEGAL_BEHIND_TONE]


def branch_names(module: str) -> dict[str, tuple[str, str]]:
    """Role -> (name in the use case's file, name in our graph)."""
    path = path_of(module)
    return {
        "A": (f"base_model.{module}.lora_A.weight", f"{module}.lora_A.weight"),
        "B": (f"base_model.{module}.lora_B.weight", f"{module}.lora_B.weight"),
        "a": (f"{path}/lora_A.0/MatMul_output_0", f"{path}/lora_A/MatMul_output_0"),
        "m": (f"{path}/mul_scale/Mul_output_0", f"{path}/lora_scale/Mul_output_0"),
        "l": (f"{path}/lora_B.0/MatMul_output_0", f"{path}/lora_B/MatMul_output_0"),
        "h": (f"{path}/MatMul_output_0", f"{path}/MatMul_output_0_base"),
        "y": (f"{path}/add_lora_to_res/Add_output_0", f"{path}/MatMul_output_0"),
    }


def branch_tensors() -> Iterator[str]:
    for module in MODULES:
        names = branch_names(module)
        yield from (names[role][1] for role in ("A", "B", "a", "m", "l"))


def test_lora_a_of_both_moves_behind_the_absent_tone(packs: Packs) -> None:
    """k_proj has legal alone: 8 scales in the file, ranks 4..11 in the graph."""
    module = "model.layers.0.self_attn.k_proj"
    source, ours = branch_names(module)["A"]
    scales = given("both")[source]["scale"]
    assert len(scales) == 8
    entry = overrides(packs("adapter_only").output, "both")[ours]
    assert entry["scale"][4:] == scales
    assert entry["scale"][:4] == [max(scales)] * 4
    assert entry["offset"] == [-128] * 12


@pytest.mark.parametrize("use_case", ["tone", "legal", "style", "both"])
def test_lora_a_scales_lie_in_their_slots(use_case: str, packs: Packs) -> None:
    found = overrides(packs("adapter_only").output, use_case)
    source = given(use_case)
    for module in ADAPTED[use_case]:
        theirs, ours = branch_names(module)["A"]
        before, after = source[theirs], found[ours]
        ranks = ranks_of(use_case, module)
        assert len(before["scale"]) == len(ranks)
        filler = max(before["scale"])
        expected = [filler] * MAX_RANK
        for rank, scale in zip(ranks, before["scale"], strict=True):
            expected[rank] = scale
        assert after["scale"] == expected, module
        assert {k: after[k] for k in ("bw", "dtype", "enc_type", "is_sym")} == {
            k: before[k] for k in ("bw", "dtype", "enc_type", "is_sym")
        }


@pytest.mark.parametrize("use_case", ["tone", "legal", "style", "both"])
@pytest.mark.parametrize("role", ["B", "a", "m", "l"])
def test_other_branch_tensors_are_renamed(use_case: str, role: str, packs: Packs) -> None:
    """Except at the module of style whose scale is half of the adapter's: B halved, m doubled."""
    found = overrides(packs("adapter_only").output, use_case)
    source = given(use_case)
    folded = {"B": 0.5, "m": 2.0}
    for module in ADAPTED[use_case]:
        theirs, ours = branch_names(module)[role]
        factor = folded.get(role, 1.0) if (use_case, module) == ("style", FOLDED) else 1.0
        expected = without_name(source[theirs])
        expected["scale"] = [scale * factor for scale in expected["scale"]]
        assert without_name(found[ours]) == expected, module


@pytest.mark.parametrize("use_case", list(ADAPTED))
def test_fixed_tensors_have_the_encodings_of_the_base(use_case: str, packs: Packs) -> None:
    found = overrides(packs("adapter_only").output, use_case)
    for name, entry in BASE.items():
        assert found[name] == entry
    for module in MODULES:
        names = branch_names(module)
        h, y = names["h"][1], names["y"][1]
        assert without_name(found[h]) == without_name(BASE[y])


@pytest.mark.parametrize("name", ["adapter_only", "all", "none"])
@pytest.mark.parametrize("use_case", list(ADAPTED))
def test_overrides_are_complete_and_hold_nothing_else(
    name: str, use_case: str, packs: Packs
) -> None:
    added = {*branch_tensors(), E, S, ALPHA} | {branch_names(m)["h"][1] for m in MODULES}
    pack = packs(name).output
    assert set(overrides(pack, use_case)) == set(BASE) | added
    assert set(entries(pack / "qairt" / "base_encodings.json")) == set(BASE) | added


@pytest.mark.parametrize("use_case", list(ADAPTED))
def test_scale_tensors(use_case: str, packs: Packs) -> None:
    """alpha: [0, 1] in 16 bits. E: one scale per rank. s: alpha's range times E's largest."""
    found = overrides(packs("adapter_only").output, use_case)
    assert found[ALPHA]["scale"] == [1 / 65535]
    assert found[ALPHA]["offset"] == [0]
    assert found[ALPHA]["bw"] == 16
    slots = {
        "base": [],
        "tone": [(TONE_RANKS, SCALES["tone"])],
        "legal": [(LEGAL_ALONE, SCALES["legal"])],
        "style": [(range(6), SCALES["style"])],
        "both": [(TONE_RANKS, SCALES["tone"]), (LEGAL_BEHIND_TONE, SCALES["legal"])],
    }[use_case]
    if not slots:
        return
    largest = max(scale for _, scale in slots)
    expected = [float(np.float32(np.float32(largest) / 127))] * MAX_RANK
    for ranks, scale in slots:
        for rank in ranks:
            expected[rank] = float(np.float32(np.float64(np.float32(scale)) / 127))
    assert found[E]["scale"] == expected
    assert found[S]["scale"] == [largest / 65535]
    assert found[S]["offset"] == [0]


@pytest.mark.parametrize("use_case", list(ADAPTED))
def test_lists_follow_the_table(use_case: str, packs: Packs) -> None:
    assert listed(packs("none").output, use_case) == []
    assert listed(packs("adapter_only").output, use_case) == sorted({*branch_tensors(), E, S})

    everything = overrides(packs("all").output, use_case)
    params = {n for n in BASE if n.endswith(".weight") and "lora" not in n}
    constants = {n for n in BASE if "Constant" in n or n == "/Trilu_output_0"}
    fixed = {ALPHA, *params}
    got = set(listed(packs("all").output, use_case))
    assert got <= set(everything) - fixed
    assert set(everything) - fixed - got <= constants
    y_and_h = {branch_names(m)[role][1] for m in MODULES for role in ("h", "y")}
    assert y_and_h | {*branch_tensors(), E, S, "logits"} <= got


@pytest.mark.parametrize("use_case", ["tone", "legal", "style", "both"])
def test_mode_all_takes_the_use_case_s_base_activations(use_case: str, packs: Packs) -> None:
    pack = packs("all").output
    found, source = overrides(pack, use_case), given(use_case, "encodings_all")
    h_and_y = {n for m in MODULES for n in (branch_names(m)["h"][0], branch_names(m)["y"][0])}
    moved = 0
    for name in set(source) & set(BASE) - h_and_y:
        if name in listed(pack, use_case):
            assert found[name] == source[name]
            moved += source[name] != BASE[name]
        else:
            assert found[name] == BASE[name]
    assert moved > 0, "the sample recalibrates base tensors"
    for module in ADAPTED[use_case]:
        for role in ("h", "y"):
            theirs, ours = branch_names(module)[role]
            assert without_name(found[ours]) == without_name(source[theirs]), (module, role)
