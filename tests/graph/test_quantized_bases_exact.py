"""Branches on quantized bases: off they are the base, bit for bit; on they are B (s * (A x)).

At every level of ONNX Runtime's optimizations: from ORT_ENABLE_EXTENDED on it computes Q/DQ graphs
in integers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto

from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.records import BranchedGraph
from tests.builders import DTYPES
from tests.graph.helpers import all_points, branch, opened, put, with_extras
from tests.graph.quantized_bases import BASES, Base, built, sample

Array = NDArray[Any]

LEVELS = ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_LAYOUT", "ENABLE_ALL")
# ONNX Runtime on x86-64 computes with signed activations in integers as long as they have one
# reader, and in floats otherwise: a branch is a second one.
SIGNED_LEVELS = ("DISABLE_ALL", "ENABLE_BASIC")
OFF = {"lora_alpha": np.zeros(2, np.float32)}


def session(model: ModelProto, level: str, optimized: Path | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(model: ModelProto, feeds: Mapping[str, Array], level: str) -> Array:
    (found,) = session(model, level).run(None, dict(feeds))
    return np.asarray(found)


def branched(base: Base, folder: Path, vectors: str = "") -> tuple[BaseGraph, BranchedGraph]:
    graph = opened(built(base)[0], folder)
    points = [with_extras(point, vectors) for point in all_points(graph)]
    return graph, branch(graph, points)


def random_factors(made: BranchedGraph, seed: int = 3) -> dict[str, Array]:
    """A and B of every branch, and an E of ones on the first slot."""
    random = np.random.default_rng(seed)
    values = {}
    for one in made.branches:
        for record in (one.a_weight, one.b_weight):
            drawn = random.normal(0, 0.3, record.shape)
            values[record.name] = drawn.astype(DTYPES[record.dtype])
    assert made.scale is not None
    assert made.scale.expansion is not None
    values[made.scale.expansion.name] = np.ones(made.scale.expansion.shape, np.float32)
    return values


@pytest.mark.parametrize(
    ("base", "level"),
    [
        pytest.param(base, level, id=f"{base.name}-{level}")
        for base in BASES
        for level in (SIGNED_LEVELS if base.codes is np.int8 else LEVELS)
    ],
)
def test_off_it_is_the_base_bit_for_bit(base: Base, level: str, tmp_path: Path) -> None:
    wanted = run(built(base)[0], {"x": sample(base)}, level)
    graph, made = branched(base, tmp_path)
    feeds = {"x": sample(base), **OFF}
    np.testing.assert_array_equal(run(graph.model.proto, feeds, level), wanted)
    loaded = put(graph.model.proto, random_factors(made))
    np.testing.assert_array_equal(run(loaded, feeds, level), wanted)
    on = run(loaded, {**feeds, "lora_alpha": np.array([1, 0], np.float32)}, level)
    assert not np.array_equal(on, wanted), "the branches have to do something"
    assert len(np.unique(wanted)) > 5, "a saturated output would prove nothing"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["matmul_u8_s8", "gemm", "conv", "several_readers"])
def test_vectors_that_are_ones_and_zeros_change_nothing(
    name: str, level: str, tmp_path: Path
) -> None:
    base = next(base for base in BASES if base.name == name)
    wanted = run(built(base)[0], {"x": sample(base)}, level)
    graph, _ = branched(base, tmp_path, "gc")
    feeds = {"x": sample(base), **OFF}
    np.testing.assert_array_equal(run(graph.model.proto, feeds, level), wanted)


@pytest.mark.parametrize("level", LEVELS[:2])
@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
def test_inputs_that_are_scaled_by_one_change_nothing(
    base: Base, level: str, tmp_path: Path
) -> None:
    """In floats: x * h has no grid, so that the node of a Q/DQ graph is not one of integers."""
    wanted = run(built(base)[0], {"x": sample(base)}, level)
    graph, _ = branched(base, tmp_path, "h")
    feeds = {"x": sample(base), **OFF}
    np.testing.assert_array_equal(run(graph.model.proto, feeds, level), wanted)


def test_a_vector_without_low_rank_is_rounded_as_well(tmp_path: Path) -> None:
    base = BASES[0]
    graph = opened(built(base)[0], tmp_path)
    points = [with_extras(point, "gc", low_rank=False) for point in all_points(graph)]
    made = branch(graph, points)
    assert [v.requantized is not None for v in made.vectors] == [False, True] * 2
    assert [pair.output for pair in made.requantized] == ["first_DQ_output_0", "fc_DQ_output_0"]
    for level in LEVELS:
        wanted = run(built(base)[0], {"x": sample(base)}, level)
        got = run(graph.model.proto, {"x": sample(base)}, level)
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        ("matmul_u8_s8", "QLinearMatMul"),
        ("matmul_u8_u8", "QLinearMatMul"),
        ("bias_between_pairs", "QLinearMatMul"),
        ("several_readers", "QLinearMatMul"),
        ("gemm", "QGemm"),
        ("conv", "QLinearConv"),
    ],
)
def test_integer_kernels_stay(name: str, kernel: str, tmp_path: Path) -> None:
    """Of unsigned activations, which every processor has kernels for."""
    base = next(base for base in BASES if base.name == name)
    graph, made = branched(base, tmp_path)
    counts = []
    for number, model in enumerate((built(base)[0], graph.model.proto)):
        file = tmp_path / f"optimized{number}.onnx"
        session(model, "ENABLE_EXTENDED", file)
        operators = Counter(node.op_type for node in onnx.load(str(file)).graph.node)
        counts.append(operators[kernel])
    assert counts == [len(made.branches)] * 2


def test_the_records_name_the_pair(tmp_path: Path) -> None:
    graph, made = branched(BASES[0], tmp_path)
    nodes = {node.output[0]: node for node in graph.model.proto.graph.node}
    for one in made.branches:
        pair = one.requantized
        assert pair is not None
        grid = [pair.scale, pair.zero_point]
        assert one.y == pair.output == one.attach.output
        assert pair.raw == f"{one.y}_sum"
        assert [nodes[pair.raw].op_type, *nodes[pair.raw].input] == ["Add", one.h, one.l]
        assert list(nodes[pair.codes].input) == [pair.raw, *grid]
        assert list(nodes[pair.output].input) == [pair.codes, *grid]
        # The base's own pair in front of it reads the same tensors.
        assert list(nodes[one.h].input)[1:] == grid
    assert made.requantized == tuple(one.requantized for one in made.branches)


def test_all_readers_of_the_codes_follow(tmp_path: Path) -> None:
    base = next(base for base in BASES if base.name == "several_readers")
    graph, made = branched(base, tmp_path)
    nodes = {node.name: node for node in graph.model.proto.graph.node}
    pair = made.branches[-1].requantized
    assert pair is not None
    assert nodes["again_DQ"].input[0] == pair.codes
    loaded = put(graph.model.proto, random_factors(made))
    y = run(loaded, {"x": sample(base), "lora_alpha": np.ones(2, np.float32)}, "DISABLE_ALL")
    # relu(y) - y of one and the same y
    assert y.min() == 0
    assert y.max() > 0


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
def test_on_it_adds_the_low_rank_product(base: Base, level: str, tmp_path: Path) -> None:
    """Of the last module alone, whose x and h the graph itself gives.

    y = DQ(Q(h + l)) with l in float64. A sum that lies halfway between two codes may be rounded
    to either, hence one step; without a grid three roundings and the sum of 40 + 4 products remain:
    2e-5 of the largest term in float32, 8 units of 2**-11 in float16.
    """
    graph, made = branched(base, tmp_path)
    one = made.branches[-1]
    values = random_factors(made)
    others = {r.name for b in made.branches[:-1] for r in (b.a_weight, b.b_weight)}
    loaded = put(graph.model.proto, {k: v for k, v in values.items() if k not in others})
    loaded.graph.output.extend(onnx.ValueInfoProto(name=name) for name in (one.x, one.h, one.y))
    feeds = {"x": sample(base), "lora_alpha": np.array([0.5, 0], np.float32)}
    names = [output.name for output in loaded.graph.output]
    found = dict(zip(names, session(loaded, level).run(None, feeds), strict=True))
    x = feeds["x"] if one.x == "x" else found[one.x]
    A, B = (values[record.name].astype(np.float64) for record in (one.a_weight, one.b_weight))
    if base.name == "conv":
        l_exact = _convolved(x.astype(np.float64), 0.5 * A, B)
    else:
        l_exact = x.astype(np.float64) @ A @ (0.5 * B)
    exact = found[one.h].astype(np.float64) + l_exact
    grid = one.attach.grid
    if grid is None:
        unit = 2e-5 if base.dtype == "float32" else 8 * 2.0**-11
        bound = unit * np.abs(exact).max()
    else:
        scale, zero = (built_values(loaded, name) for name in (grid.scale, grid.zero_point))
        limits = np.iinfo(zero.dtype)
        codes = np.clip(np.rint(exact / scale) + zero, limits.min, limits.max)
        exact = (codes - zero) * scale
        bound = float(scale) * (1 + 1e-3)
    error = np.abs(found[one.y].astype(np.float64) - exact)
    assert error.max() <= bound
    assert (error <= bound / 100).mean() > 0.9 or grid is None, "most are not at a tie"


def built_values(model: ModelProto, name: str) -> Array:
    """The value of an initializer or Constant node."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            return np.asarray(onnx.numpy_helper.to_array(tensor))
    node = next(node for node in model.graph.node if name in node.output)
    return np.asarray(onnx.numpy_helper.to_array(node.attribute[0].t))


def _convolved(x: Array, A: Array, B: Array) -> Array:
    """3 x 3 by A with padding 1, then 1 x 1 by B."""
    height, width = x.shape[2:]
    padded = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])
    a = sum(
        np.einsum("nchw,rc->nrhw", padded[:, :, i : i + height, j : j + width], A[:, :, i, j])
        for i in range(3)
        for j in range(3)
    )
    return np.asarray(np.einsum("nrhw,or->nohw", a, B[:, :, 0, 0]))
