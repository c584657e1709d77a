"""Encodings of chained branches, of scales in other places, and what files lack.

Expected grids are written out; a sum may be off by the rounding of its offset, half a step.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from lora_quant.errors import EncodingsError
from tests.builders import GraphBuilder
from tests.passes.exported_builds import (
    FACTOR,
    INPUTS,
    OURS,
    OUTPUTS,
    Own,
    build_exported,
    build_graphs,
    described,
    document,
    factors,
)
from tests.passes.exported_cases import (
    A_LEGAL,
    A_TONE,
    CHAINED,
    JOINED,
    MIX,
    RANKS,
    SHARED,
    TONE,
    all_rules,
    both,
    close,
    covers,
)
from tests.passes.kind_builds import activation, ends, weight


def test_chained_branches_become_one(tmp_path: Path) -> None:
    """A by ranks; B, a and m cover both; l is the sum; the sum in between is not needed."""
    built = both(tmp_path, Own(), CHAINED)
    found = built.overrides("both")
    assert found[OURS["A"]]["scale"] == A_TONE + A_LEGAL
    assert found[OURS["B"]]["scale"] == [0.03] * OUTPUTS
    assert covers(found[OURS["a"]], CHAINED["1.a"], CHAINED["2.a"])
    assert covers(found[OURS["m"]], CHAINED["1.m"], CHAINED["2.m"])
    lows, highs = zip(*(ends(CHAINED[f"{n}.l"]) for n in "12"), strict=True)
    assert close(found[OURS["l"]], sum(lows), sum(highs))
    assert all_rules(built) == {"encodings/chained-union", "encodings/chained-sum"}


def test_chained_a_per_tensor_has_one_grid(tmp_path: Path) -> None:
    files = {**CHAINED, "1.A": weight([0.04]), "2.A": weight([0.05])}
    built = both(tmp_path, Own(), files)
    assert built.overrides("both")[OURS["A"]]["scale"] == [0.05]
    (told,) = (f for f in built.findings if f.rule == "encodings/chained-union")
    assert OURS["A"] in told.message


def test_chained_grids_of_other_structure_are_refused(tmp_path: Path) -> None:
    files = {**CHAINED, "2.a": activation(-3.0, 1.0, bits=8)}
    with pytest.raises(EncodingsError, match="cannot share one grid") as caught:
        both(tmp_path, Own(), files)
    assert caught.value.where.tensor == OURS["a"]
    assert caught.value.where.use_case == "both"
    assert caught.value.where.file == tmp_path / "both.encodings"


def test_what_one_of_two_branches_lacks_is_missing(tmp_path: Path) -> None:
    files = {name: entry for name, entry in CHAINED.items() if name != "2.l"}
    built = both(tmp_path, Own(), files)
    assert OURS["l"] not in built.overrides("both")
    assert OURS["l"] in built.rules("both")["encodings/missing-activation"]


def test_a_scale_behind_b_leaves_m_to_be_computed(tmp_path: Path) -> None:
    """B (A x) is no tensor of ours, and is not reported as unknown; l is the scaled one."""
    files = {name: entry for name, entry in SHARED.items() if name != "1.m"}
    files |= {"1.A": weight(A_TONE), "1.ba": activation(-77.0, 77.0)}
    built = both(tmp_path, Own(place="behind"), files, mix=TONE)
    found = built.overrides("both")
    assert close(found[OURS["m"]], 2.0 * -9.0, 2.0 * 8.0)
    assert close(found[OURS["l"]], -29.0, 28.0)
    assert all_rules(built) == {"encodings/computed-activation"}


def test_mode_none_unites_the_use_cases(tmp_path: Path) -> None:
    use_cases = {"both": (Own(), MIX), "tone": (Own(), TONE)}
    tone = {name: entry for name, entry in CHAINED.items() if name[0] == "1"}
    tone |= {"1.A": weight([0.5, 0.01]), "1.y": activation(-4.0, 5.0)}
    built = build_exported(tmp_path, use_cases, {"both": CHAINED, "tone": tone}, RANKS, mode="none")
    scales = built.base()[OURS["A"]]["scale"]
    assert scales == [0.5, 0.022, *A_LEGAL]
    assert built.overrides("tone")[OURS["A"]]["scale"] == scales


def test_documents_need_no_entries(tmp_path: Path) -> None:
    """A file that tells nothing leaves weights to be computed, and activations missing."""
    built = both(tmp_path, Own(JOINED), document({}))
    assert {OURS["A"], OURS["B"]} <= set(built.overrides("both"))
    assert {OURS["a"], OURS["l"]} <= built.rules("both")["encodings/missing-activation"]


def test_the_gain_of_a_gemm_is_part_of_the_scale(tmp_path: Path) -> None:
    """a = 4 A x in the file is A x in ours; m is s * a, and B takes half of it."""
    rank = RANKS["tone"]
    for name, own in (("base", False), ("tone", True)):
        onnx.save(_gemms(rank, own=own), str(tmp_path / f"{name}.onnx"))
    files = {
        "base": {"/q/Gemm_output_0": activation(-4.0, 5.0)},
        "tone": {"1.a": activation(-4.0, 8.0), "1.m": activation(-8.0, 16.0)},
    }
    graphs = {"base": (tmp_path / "base.onnx", {}), "tone": (tmp_path / "tone.onnx", TONE)}
    found = build_graphs(tmp_path, described({"tone": rank}), graphs, files).overrides("tone")
    assert close(found[OURS["a"]], -1.0, 2.0)
    assert close(found[OURS["m"]], -4.0, 8.0)


def _gemms(rank: int, *, own: bool) -> onnx.ModelProto:
    made = GraphBuilder(seed=3)
    x = made.input("x", (4, INPUTS))
    last = made.node("Gemm", [x, made.weight("q.weight", INPUTS, OUTPUTS)], "/q/Gemm")
    if own:
        a, b = factors("tone", rank)
        low = made.node("Gemm", [x, made.constant("1.A", a)], "1.a", "1.a", alpha=4.0)
        # lora_alpha / r is the product of all three
        scale = np.array([FACTOR / 4.0 / 0.5], np.float32)
        low = made.node("Mul", [low, made.constant("1.s", scale)], "1.m", "1.m")
        update = made.node("Gemm", [low, made.constant("1.B", b)], "1.l", "1.l", alpha=0.5)
        last = made.node("Add", [last, update], "1.y", "1.y")
    made.output(made.node("Relu", [last], "/act/Relu", "out"), (4, OUTPUTS))
    return made.model()
