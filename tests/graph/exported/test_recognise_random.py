"""Every spelling of a branch is recognised, and its values are what the engine computes with."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from numpy.typing import NDArray
from onnx import ModelProto, helper

from lora_quant.graph.exported.branch_values import scale_values, weight_values
from lora_quant.graph.exported.recognise import recognise_branches
from lora_quant.graph.exported.records import (
    ExportedGraph,
    FoundBranch,
    FoundScale,
    ScalePlace,
    ScaleSource,
)
from tests.graph.exported.branch_cases import Built, BuiltBranch, Case, build, cases
from tests.graph.exported.removal import without
from tests.graph.helpers import opened, run

Array = NDArray[Any]


def recognised(model: ModelProto, *, external: bool = False) -> ExportedGraph:
    with tempfile.TemporaryDirectory() as folder:
        found = recognise_branches(opened(model, Path(folder), external=external))
        if external:
            for point in found.points:
                for branch in point.branches:
                    weight_values(found.graph, branch.a)
        return found


def exposed(model: ModelProto, names: list[str]) -> ModelProto:
    """A copy that gives some tensors more."""
    model = copy.deepcopy(model)
    for name in names:
        model.graph.output.append(helper.make_empty_tensor_value_info(name))
    return model


def multiplied(found: ExportedGraph, branch: FoundBranch, built: Built, place: ScalePlace) -> Array:
    """All scales of one place, one after the other, as float64."""
    total = np.ones(1)
    for scale in branch.scales:
        if scale.place is place:
            total = total * strength(found, scale, built)
    return total


def strength(found: ExportedGraph, scale: FoundScale, built: Built) -> Array:
    values = scale_values(found.graph, scale)
    if scale.source is ScaleSource.EXPANDED:
        assert values is not None
        return np.asarray(built.feeds[scale.tensor].astype(np.float64) @ values)
    if values is None:
        assert scale.source is ScaleSource.INPUT
        return built.feeds[scale.tensor].reshape(-1).astype(np.float64)
    return values


def delta(found: ExportedGraph, branch: FoundBranch, built: Built) -> Array:
    """B diag(s) A as one weight `[out, in, *kernel]`, in float64."""
    a = weight_values(found.graph, branch.a).astype(np.float64) * branch.a.gain
    b = weight_values(found.graph, branch.b).astype(np.float64) * branch.b.gain
    b = b.reshape(b.shape[:2])
    between = multiplied(found, branch, built, ScalePlace.BETWEEN)
    behind = multiplied(found, branch, built, ScalePlace.BEHIND)
    return np.asarray(np.tensordot(b * between * behind, a, axes=1))


def applied(weight: Array, x: Array, case: Case) -> Array:
    """W x, by the layout of the base: the last axis, rows of a table, or a convolution."""
    if case.base == "gather":
        return np.asarray(weight.T[x])
    if case.base in ("matmul", "gemm"):
        return np.asarray(x @ weight.reshape(weight.shape[:2]).T)
    weight = weight.reshape(*weight.shape[:2], *(weight.shape[2:] or (1, 1)))
    strides, pads = ((2, 1), (1, 0, 1, 1)) if case.base == "wide_conv" else ((1, 1), (0, 0, 0, 0))
    x = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(2, 3))
    windows = windows[:, :, :: strides[0], :: strides[1]]
    result = np.einsum("nchwij,ocij->nohw", windows, weight)
    return np.asarray(np.moveaxis(result, 1, -1) if case.base == "turned_conv" else result)


def assert_branch(branch: FoundBranch, built: BuiltBranch, found: ExportedGraph) -> None:
    """The factors are, bit for bit, what went in."""
    a, b = weight_values(found.graph, branch.a), weight_values(found.graph, branch.b)
    assert a.flags.c_contiguous
    assert b.flags.c_contiguous
    assert np.array_equal(a.reshape(built.a.shape), built.a)
    assert np.array_equal(b.reshape(built.b.shape), built.b)
    assert {a.dtype, b.dtype} == {np.dtype(np.float32)}
    assert branch.rank == built.a.shape[0]
    assert branch.l == built.l
    assert [scale.size for scale in branch.scales] == [len(s) for s in built.scales]


@settings(max_examples=80)
@given(cases())
def test_every_branch_of_a_random_graph_is_found_with_its_values(case: Case) -> None:
    built = build(case)
    found = recognised(built.model)
    assert found.near == ()
    (point,) = found.points
    assert (point.h, point.y) == (built.h, built.y)
    assert len(point.branches) == len(built.branches)
    for branch, made in zip(point.branches, built.branches, strict=True):
        assert_branch(branch, made, found)
        assert branch.x == ("ids" if case.base == "gather" else "x")
    names = [branch.l for branch in point.branches]
    x = "ids" if case.base == "gather" else "x"
    told = exposed(built.model, [x, *names] if x == "x" else names)
    outputs = run(told, built.feeds, optimized=False)[1:]
    given_x = outputs.pop(0) if x == "x" else built.feeds["ids"]
    for branch, made, l_ in zip(point.branches, built.branches, outputs, strict=True):
        weight = delta(found, branch, built)
        expected = applied(weight, given_x.astype(np.float64) if x == "x" else given_x, case)
        # Each value is a sum of at most 30 * 4 products of three factors and two scales: that many
        # roundings of float32, each relative to the sum of the magnitudes.
        bound = np.abs(made.b).sum() * np.abs(made.a).max() * max(np.abs(given_x).max(), 1.0)
        bound *= np.prod([np.abs(scale).max() for scale in made.scales]) * made.a[0].size
        assert np.abs(l_ - expected).max() <= 128 * 2.0**-24 * bound


@settings(max_examples=60)
@given(cases())
def test_without_the_nodes_of_its_branches_a_graph_is_the_base(case: Case) -> None:
    built, base = build(case), build(case, with_branches=False)
    found = recognised(built.model)
    names = {value.name for value in base.model.graph.input}
    feeds = {name: values for name, values in built.feeds.items() if name in names}
    left = without(built.model, found)
    (expected,) = run(base.model, feeds, optimized=False)
    (got,) = run(left, feeds, optimized=False)
    assert np.array_equal(got, expected)
    assert [n.op_type for n in left.graph.node] == [n.op_type for n in base.model.graph.node]


@settings(max_examples=60)
@given(cases())
def test_a_base_without_branches_has_none(case: Case) -> None:
    found = recognised(build(case, with_branches=False).model)
    assert (found.points, found.near) == ((), ())
