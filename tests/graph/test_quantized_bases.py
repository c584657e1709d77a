"""Which nodes of a quantized graph take a branch, where it is added, and why others take none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from lora_quant.errors import AttachPointError, GraphError
from lora_quant.graph.attach.catalog import attach_map
from lora_quant.graph.attach.linear import NotLinear
from lora_quant.graph.merging.merged_weights import write_merged
from lora_quant.graph.records import AttachPoint, Storage
from tests.builders import GraphBuilder
from tests.graph.helpers import all_points, opened, request, resolve
from tests.graph.quantized_bases import (
    BASES,
    MICROSOFT,
    Base,
    Quantizer,
    built,
    matmul,
    model_of,
    quantizer,
)

MODULE = "fc"


def point_of(base: Base, folder: Path) -> AttachPoint:
    """The point of the module fc."""
    graph = opened(built(base)[0], folder)
    return next(point for point in all_points(graph) if point.name == MODULE)


def made(build: Callable[[Quantizer], str], folder: Path, **options: Any) -> AttachPoint:
    return point_of(Base("made", build, **options), folder)


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
def test_every_form_is_an_attach_point(base: Base, tmp_path: Path) -> None:
    model, weights = built(base)
    graph = opened(model, tmp_path)
    point = next(point for point in all_points(graph) if point.name == MODULE)
    linear = point.linear
    is_packed = linear.op == "MatMulNBits"
    assert linear.storage is (Storage.PACKED if is_packed else Storage.DEQUANTIZED)
    weight = weights["fc.weight" if "fc.weight" in weights else "fc"]
    sizes = {linear.in_features, linear.out_features}
    assert sizes <= set(weight.shape)
    assert linear.dtype == base.dtype
    # In half precision, rounding twice is not as once in every engine.
    assert (point.grid is not None) == (base.step > 0 and base.dtype == "float32")
    # `lora-quant map` writes what resolves to the same point.
    again = resolve(
        graph,
        [request(MODULE, linear.in_features, linear.out_features, _kernel(point))],
        attach_map(graph.catalog),
    )
    assert again.points == (point,)


def _kernel(point: AttachPoint) -> tuple[int, ...]:
    return point.linear.conv.kernel if point.linear.conv else ()


def test_the_branch_goes_behind_the_last_pair(tmp_path: Path) -> None:
    point = made(matmul(bias=True, between=True), tmp_path)
    assert (point.bias_node, point.output) == ("/fc/Add", "fc_DQ_output_0")
    assert point.grid is not None
    assert (point.grid.source, point.grid.codes) == ("/fc/Add_output_0", "fc_Q_output_0")
    assert (point.grid.scale, point.grid.zero_point) == ("fc_scale", "fc_zero")
    assert point.grid.others == ()


def test_all_that_read_the_codes_are_told(tmp_path: Path) -> None:
    base = next(base for base in BASES if base.name == "several_readers")
    point = point_of(base, tmp_path)
    assert point.grid is not None
    assert (point.output, point.grid.others) == ("fc_DQ_output_0", ("again_DQ_output_0",))


def _read_before_rounding(q: Quantizer) -> str:
    return q.graph.node("Sub", [matmul()(q), "/fc/MatMul_output_0"], "/sub")


def _codes_read(q: Quantizer) -> str:
    y = matmul()(q)
    codes = q.graph.node("Cast", ["fc_Q_output_0"], "/cast", to=TensorProto.FLOAT)
    return q.graph.node("Sub", [y, codes], "/sub")


def _another_grid(q: Quantizer) -> str:
    y = matmul()(q)
    coarse = q.graph.constant("coarse", np.array(0.07, np.float32))
    q.graph.nodes[-1].input[1] = coarse
    return y


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (_read_before_rounding, {}),
        (_codes_read, {}),
        (_another_grid, {}),
        (matmul(), {"dtype": "float16"}),
    ],
)
def test_a_pair_that_cannot_be_repeated_is_left_behind_the_branch(
    build: Callable[[Quantizer], str], options: dict[str, Any], tmp_path: Path
) -> None:
    point = made(build, tmp_path, **options)
    assert (point.grid, point.output) == (None, "/fc/MatMul_output_0")


def test_codes_that_are_an_output_are_left_alone(tmp_path: Path) -> None:
    q = quantizer(Base("made", matmul()))
    q.graph.output(matmul()(q), ("N", 8))
    model = model_of(q)
    model.graph.output.add(name="fc_Q_output_0")
    (_, point) = all_points(opened(model, tmp_path))
    assert (point.grid, point.output) == (None, "/fc/MatMul_output_0")


def refused(build: Callable[[GraphBuilder], str], folder: Path) -> str:
    graph = GraphBuilder()
    graph.input("x", (2, 32))
    graph.output(build(graph), ("N", "M"))
    model = graph.model(opset=21, ir_version=10, other_domains=[MICROSOFT])
    found = opened(model, folder).catalog.nodes["/fc/Node"]
    assert isinstance(found, NotLinear)
    return found.reason


def packed(
    *dims: int,
    codes: Any = np.uint8,
    extra: tuple[str, ...] = (),
    zeros: Any = None,
    **given: Any,
) -> Callable[[GraphBuilder], str]:
    attributes: dict[str, Any] = {"K": 32, "N": 4, "bits": 4, "block_size": 16} | given

    def build(g: GraphBuilder) -> str:
        inputs = ["x", g.constant("B", np.zeros(dims, codes)), g.weight("s", 4, 2), *extra]
        if zeros is not None:
            inputs.append(g.constant("z", zeros))
        if "order" in extra:
            g.constant("order", np.zeros(32, np.int32))
        return g.node("MatMulNBits", inputs, "/fc/Node", domain=MICROSOFT, **attributes)

    return build


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (
            packed(4, 2, 8, extra=("", "order")),
            "it reads its inputs in another order (g_idx)",
        ),
        (
            packed(4, 2, 7),
            "its weight is uint8 of shape [4, 2, 7], expected uint8 of [4, 2, 8]",
        ),
        (
            packed(4, 2, 8, codes=np.int8),
            "its weight is int8 of shape [4, 2, 8], expected uint8 of [4, 2, 8]",
        ),
        (packed(4, 2, 8, bits=3), "its weight has 3 bits, expected 2, 4 or 8"),
        (
            packed(4, 2, 8, block_size=12),
            "its weight has blocks of 12, expected a power of two from 16 on",
        ),
        (packed(4, 2, 8, block_size=32), "its scales have shape [4, 2], expected [4, 1]"),
        (
            packed(4, 2, 8, K=0),
            "its attributes are K 0, N 4, bits 4, block_size 16; expected whole numbers above 0",
        ),
        (
            packed(4, 2, 8, weight_prepacked=1),
            "its weight is packed for one kind of device (weight_prepacked)",
        ),
        (packed(4, 2, 8, N="4"), "its attributes are K 32, N b'4'"),
        (
            packed(4, 2, 8, zeros=np.zeros(3, np.uint8)),
            "its zero points have shape [3], expected [4, 1]",
        ),
        (
            packed(4, 2, 8, zeros=np.zeros((4, 1), np.float32)),
            "its zero points have shape [4, 1], expected [4, 2]",
        ),
        (
            packed(4, 2, 8, zeros=np.zeros((4, 2), np.float16)),
            "its zero points are of type float16, expected uint8 or the type of its scales",
        ),
        (packed(4, 2, 8, extra=("x",)), "its zero points are not constant"),
        (packed(8, 2, 8, N=8), "its scales have shape [4, 2], expected [8, 2]"),
    ],
)
def test_packed_weights_that_take_no_branch(
    build: Callable[[GraphBuilder], str], reason: str, tmp_path: Path
) -> None:
    assert refused(build, tmp_path).startswith(reason)


def dequantized(
    *,
    scale: tuple[int, ...] = (),
    stored: Any = np.int8,
    zero: tuple[int, ...] | None = None,
    before: str = "",
    **attributes: Any,
) -> Callable[[GraphBuilder], str]:
    def build(g: GraphBuilder) -> str:
        w = g.constant("w", np.zeros((32, 4), stored))
        if before:
            w = g.node(before, [w], "/before")
        inputs = [w, g.weight("s", *scale)]
        if zero is not None:
            inputs.append(g.constant("z", np.zeros(zero, stored)))
        w = g.node("DequantizeLinear", inputs, "/dq", **attributes)
        return g.node("MatMul", ["x", w], "/fc/Node")

    return build


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (
            dequantized(scale=(3,)),
            "its weight of shape [32, 4] has scales of shape [3], expected [4]",
        ),
        (
            dequantized(scale=(4,), axis=0),
            "its weight of shape [32, 4] has scales of shape [4], expected [32]",
        ),
        (
            dequantized(scale=(3, 4), axis=0, block_size=8),
            "its weight of shape [32, 4] has scales of shape [3, 4], expected [4, 4]",
        ),
        (
            dequantized(scale=(4,), zero=(3,)),
            "its weight of shape [32, 4] has scales of shape [4], expected [4]",
        ),
        (
            dequantized(stored=np.float32),
            "its weight is stored as float and then dequantized",
        ),
        (
            dequantized(scale=(4,), axis=2),
            "its weight of shape [32, 4] has scales along axis 2",
        ),
        (
            dequantized(scale=(1, 1), axis=-3, block_size=32),
            "its weight of shape [32, 4] has scales along axis -1",
        ),
        (dequantized(before="Neg"), "its weight is computed by Neg, not constant"),
        (
            lambda g: g.node(
                "MatMul",
                ["x", g.node("DequantizeLinear", ["x", g.weight("s")], "/dq")],
                "/fc/Node",
            ),
            "its weight is a graph input",
        ),
        (
            lambda g: g.node(
                "MatMul",
                [
                    "x",
                    g.node("DequantizeLinear", [g.constant("w", np.zeros(3, np.int8)), "x"], "/dq"),
                ],
                "/fc/Node",
            ),
            "its weight has a scale or zero point that is not constant",
        ),
    ],
)
def test_dequantized_weights_that_take_no_branch(
    build: Callable[[GraphBuilder], str], reason: str, tmp_path: Path
) -> None:
    assert refused(build, tmp_path) == reason


def test_a_float_weight_on_two_grids_is_refused(tmp_path: Path) -> None:
    def build(g: GraphBuilder) -> str:
        zero = g.constant("z", np.array(0, np.int8))
        q = g.node("QuantizeLinear", [g.weight("w", 32, 4), g.weight("s"), zero], "/q")
        w = g.node("DequantizeLinear", [q, g.weight("t"), zero], "/dq")
        return g.node("MatMul", ["x", w], "/fc/Node")

    reason = "its weight is quantized by another grid than it is dequantized by"
    assert refused(build, tmp_path) == reason


def test_a_node_in_a_subgraph_is_refused_whatever_its_weight(tmp_path: Path) -> None:
    base = opened(model_of(_with_function()), tmp_path)
    assert base.catalog.refused["inner"].reason.startswith("it lies inside")


def _with_function() -> Quantizer:
    """A MatMulNBits inside the branch of an If."""
    inner = Quantizer(GraphBuilder())
    y = inner.packed("inner", "x", 16, 4)
    inner.graph.output(y, ("N", 4))
    body = inner.graph.model().graph
    outer = Quantizer(GraphBuilder())
    outer.graph.input("x", (2, 16))
    outer.graph.input("is_on", (), "bool")
    outer.graph.node("If", ["is_on"], "/if", "z", then_branch=body, else_branch=body)
    outer.graph.output("z", ("N", 4))
    return outer


def test_nothing_is_merged_into_a_quantized_weight(tmp_path: Path) -> None:
    base = opened(built(BASES[0])[0], tmp_path)

    def never(_: Any) -> Any:
        raise AssertionError("nothing may be computed or written before the refusal")

    with pytest.raises(GraphError, match="nothing can be merged into the weight of") as caught:
        write_merged(base, all_points(base), never, never)
    assert "quantize the merged graph anew" in str(caught.value)


def test_integer_kernels_are_still_refused(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    inputs = [x, graph.constant("fc.weight", np.ones((4, 4), np.int8))]
    graph.output(graph.node("MatMulInteger", inputs, "/fc/MatMul"), ("N", 4))
    base = opened(graph.model(), tmp_path)
    with pytest.raises(AttachPointError, match=r"its weight is quantized \(MatMulInteger\)"):
        resolve(base, [request(MODULE, 4, 4)])
