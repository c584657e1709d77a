"""Operands of a Mul inside of a branch that look like a scale of the ranks, and are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.graph.exported.test_recognise_near import RANK, TOKENS, Net, reason

NO_SCALE = "expected one value, or a constant or an input of one value per rank"


def test_strengths_that_differ_from_token_to_token_are_none(tmp_path: Path) -> None:
    """[tokens, 1] @ [1, rank] is another vector of ranks for every token."""
    net = Net(tmp_path)
    strengths = net.graph.input("strengths", (TOKENS, 1))
    scale = net.graph.matmul("E", strengths, in_features=1, out_features=RANK)
    low = net.graph.node("Mul", [net.first(), scale], "scaled")
    assert net.done(net.h, net.second(low)).points == ()


def test_one_row_of_strengths_is_a_scale(tmp_path: Path) -> None:
    net = Net(tmp_path)
    strengths = net.graph.input("strengths", (1, TOKENS))
    scale = net.graph.matmul("E", strengths, in_features=TOKENS, out_features=RANK)
    low = net.graph.node("Mul", [net.first(), scale], "scaled")
    found = net.done(net.h, net.second(low))
    ((branch,),) = (point.branches for point in found.points)
    assert [(scale.size, scale.tensor) for scale in branch.scales] == [(RANK, "strengths")]


def test_a_constant_that_the_graph_repeats_is_none(tmp_path: Path) -> None:
    """Its tensor holds fewer values than it has ranks; exporters store what they repeat."""
    net = Net(tmp_path)
    one = net.graph.constant("one", np.full(1, 0.5, np.float32))
    scale = net.graph.node("Concat", [one] * RANK, "repeated", axis=0)
    low = net.graph.node("Mul", [net.first(), scale], "scaled")
    assert NO_SCALE in reason(net.done(net.h, net.second(low)))


def test_an_input_that_the_graph_repeats_is_a_scale(tmp_path: Path) -> None:
    net = Net(tmp_path)
    one = net.graph.input("one", (1,))
    scale = net.graph.node("Concat", [one] * RANK, "repeated", axis=0)
    low = net.graph.node("Mul", [net.first(), scale], "scaled")
    found = net.done(net.h, net.second(low))
    ((branch,),) = (point.branches for point in found.points)
    assert [(scale.size, scale.tensor) for scale in branch.scales] == [(RANK, "one")]
