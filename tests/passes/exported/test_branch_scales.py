"""What the scales of a branch say of each rank: constants, gains, inputs and matrices of slots."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_quant.graph.exported.recognise import recognise_branches
from lora_quant.passes.exported.branch_scales import scale_readings
from lora_quant.passes.exported.factors import same
from lora_quant.passes.exported.readings import Law, Owner, RankScales
from tests.builders import DTYPES, GraphBuilder
from tests.graph.helpers import opened

IN, RANK, OUT = 6, 3, 5
Array = NDArray[Any]
Scaled = Callable[[GraphBuilder, str], str]


def plain(graph: GraphBuilder, tensor: str) -> str:
    return tensor


def readings(
    folder: Path,
    between: Scaled = plain,
    behind: Scaled = plain,
    *,
    gains: tuple[float, float] = (1.0, 1.0),
    dtype: str = "float32",
) -> tuple[RankScales, ...]:
    """Those of a branch of two Gemm on a MatMul; `between` and `behind` scale what A and B give."""
    graph = GraphBuilder(dtype)
    x = graph.input("x", ("rows", IN))
    h = graph.matmul("base", x, in_features=IN, out_features=OUT)
    low = graph.node("Gemm", [x, graph.weight("A", IN, RANK)], "first", alpha=gains[0])
    low = between(graph, low)
    high = graph.node("Gemm", [low, graph.weight("B", RANK, OUT)], "second", alpha=gains[1])
    graph.output(graph.node("Add", [h, behind(graph, high)], "sum"), ("rows", OUT))
    found = recognise_branches(opened(graph.model(), folder))
    ((branch,),) = (point.branches for point in found.points)
    return scale_readings(found.graph, branch, np.zeros(RANK, bool))


def by(name: str, values: Any, dtype: str = "float32") -> Scaled:
    """A Mul by a constant."""

    def scaled(graph: GraphBuilder, tensor: str) -> str:
        constant = graph.constant(name, np.array(values, DTYPES[dtype]))
        return graph.node("Mul", [tensor, constant], f"{name}/Mul")

    return scaled


def by_input(graph: GraphBuilder, tensor: str) -> str:
    return graph.node("Mul", [tensor, graph.input("strength", (1,))], "strength/Mul")


def by_slots(matrix: Any) -> Scaled:
    def scaled(graph: GraphBuilder, tensor: str) -> str:
        values = np.array(matrix, np.float32)
        read = [graph.input("strengths", (len(values),)), graph.constant("E", values)]
        return graph.node("Mul", [tensor, graph.node("MatMul", read, "expand")], "slots/Mul")

    return scaled


def scale_of(reading: RankScales) -> list[float]:
    assert reading.scale is not None
    return [float(value) for value in reading.scale]


def test_constants_and_the_gains_of_both_gemm_are_multiplied(tmp_path: Path) -> None:
    """All are powers of two, so that products are exact."""
    (one,) = readings(tmp_path, by("s", [1, 2, 4]), by("t", 0.5), gains=(8.0, 0.25))
    assert scale_of(one) == [1.0, 2.0, 4.0]
    assert not one.at_run_time


def test_ranks_of_no_slot_are_told_from_those_of_the_first(tmp_path: Path) -> None:
    (one,) = readings(tmp_path, by_slots([[2, 0, 0], [0, 3, 0]]))
    assert one.slots is not None
    assert one.slots.tolist() == [0, 1, -1]
    assert scale_of(one) == [2.0, 3.0, 0.0]


def test_an_input_alone_leaves_the_factor_to_the_description(tmp_path: Path) -> None:
    assert readings(tmp_path, by_input)[-1].scale is None


def test_a_constant_beside_an_input_is_never_ignored(tmp_path: Path) -> None:
    found = readings(tmp_path, by_input, by("t", 3.0))
    assert [scale_of(one) for one in found] == [[3.0] * RANK]
    assert found[0].at_run_time


def owner(factor: float) -> Owner:
    return Owner("tone", RANK, {Law.LORA: factor}, 1.0, 0)


def test_every_constant_may_be_rounded_once(tmp_path: Path) -> None:
    """3 ulp of 1 are more than one constant can be off (2), and less than two can (4)."""
    off = 1 + 3 * 2.0**-23
    (one,) = readings(tmp_path, by("s", off))
    assert one.fitting(owner(1.0), 0) == frozenset()
    (two,) = readings(tmp_path, by("s", off), by("t", 1.0))
    assert two.fitting(owner(1.0), 0) == {Law.LORA}


def test_a_scale_below_the_smallest_number_of_the_type_fits(tmp_path: Path) -> None:
    """float16 ends at 2**-24: 0.75 of it is stored as it, which is a third more."""
    least = 2.0**-24
    (one,) = readings(tmp_path, by("s", 0.75 * least, "float16"), dtype="float16")
    assert scale_of(one) == [least] * RANK
    assert one.fitting(owner(0.75 * least), 0) == {Law.LORA}
    assert one.fitting(owner(4 * least), 0) == frozenset()


def test_factors_of_other_types_are_others_whatever_their_bits() -> None:
    zeros = np.zeros((2, 3), np.float32)
    assert same(zeros, zeros.copy())
    assert not same(zeros, zeros.view(np.int32))
    assert not same(zeros, zeros.reshape(3, 2))
    assert not same(zeros, -zeros)
