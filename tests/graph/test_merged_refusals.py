"""What cannot be merged is refused, with the reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from lora_quant.errors import GraphError
from lora_quant.graph.base.base_graph import open_base
from lora_quant.graph.files.rewritten_data import overlapping
from lora_quant.graph.records import AttachPoint
from tests.builders import GraphBuilder, attention, save
from tests.graph.cases import CASES, built
from tests.graph.helpers import all_points, opened
from tests.graph.numerics import Array
from tests.graph.test_branches import mixed
from tests.graph.test_forms import grouped, grouped_point
from tests.graph.test_merged_weights import Update, merged, random_update


def tied() -> ModelProto:
    """An embedding whose table is the transposed weight of the output layer."""
    graph = GraphBuilder()
    ids = graph.input("ids", ("N",), "int64")
    table = graph.weight("embed.weight", 9, 4)
    x = graph.node("Gather", [table, ids], "/embed/Gather")
    w = graph.node("Transpose", [table], "/head/Transpose", perm=[1, 0])
    y = graph.node("MatMul", [x, w], "/head/MatMul", output="y")
    graph.output(y, ("N", 9))
    return graph.model()


def test_a_tied_table_is_refused(tmp_path: Path) -> None:
    base = opened(tied(), tmp_path, external=True)
    (head,) = base.catalog.linears.values()
    points = [AttachPoint("head", head, "y", None, ())]
    updates = [random_update(points[0], "d")]
    with pytest.raises(
        GraphError, match="'/head/MatMul' is also read by '/embed/Gather', which would change"
    ) as caught:
        merged(base, points, updates, tmp_path / "out")
    assert (caught.value.where.module, caught.value.where.tensor) == ("head", "embed.weight")
    # c alone changes no weight.
    base = open_base(tmp_path / "base.onnx")
    merged(base, points, [random_update(points[0], "c")], tmp_path / "with_c")


def test_a_weight_of_two_layers_is_refused(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    p = graph.matmul("/p/MatMul", x, in_features=4, out_features=4, weight="w")
    q = graph.matmul("/q/MatMul", p, in_features=4, out_features=4, weight="w", output="y")
    graph.output(q, ("N", 4))
    for external in (False, True):
        folder = tmp_path / str(external)
        folder.mkdir()
        base = opened(graph.model(), folder, external=external)
        linears = list(base.catalog.linears.values())
        points = [
            AttachPoint(name, one, one.product, None, ())
            for name, one in zip("pq", linears, strict=True)
        ]
        updates = [Update(), random_update(points[1], "d")]
        with pytest.raises(GraphError, match="'/q/MatMul' is also read by '/p/MatMul'"):
            merged(base, points, updates, folder / "out")


def test_a_weight_that_a_subgraph_reads_is_refused(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    flag = graph.input("flag", (), "bool")
    y = graph.matmul("/p/MatMul", x, in_features=4, out_features=4, weight="w", output="y")
    bodies = {}
    for name in ("then", "else"):
        output = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, [4, 4])
        node = helper.make_node("Identity", ["w"], [output.name])
        bodies[f"{name}_branch"] = helper.make_graph([node], name, [], [output])
    z = graph.node("If", [flag], "/If", output="z", **bodies)
    graph.output(y, ("N", 4))
    graph.output(z, (4, 4))
    base = opened(graph.model(), tmp_path)
    points = list(all_points(base))
    with pytest.raises(GraphError, match="is also read by a subgraph"):
        merged(base, points, [random_update(points[0], "d")], tmp_path / "out")


def test_weights_in_the_same_bytes_are_refused(tmp_path: Path) -> None:
    path = save(attention(layers=1).model(), tmp_path / "base.onnx", external=True)
    model = onnx.load(str(path), load_external_data=False)
    first, second = model.graph.initializer[1:3]
    assert list(first.dims) == list(second.dims)
    for entry, other in zip(first.external_data, second.external_data, strict=True):
        other.value = entry.value
    path.write_bytes(model.SerializeToString())
    assert overlapping(model) == {first.name: second.name, second.name: first.name}
    base = open_base(path)
    points = list(all_points(base))
    updates = [Update() for _ in points]
    updates[1] = random_update(points[1], "d")
    with pytest.raises(GraphError, match="lie in the same bytes of a data file"):
        merged(base, points, updates, tmp_path / "out")


def test_values_that_the_type_cannot_hold_are_refused(tmp_path: Path) -> None:
    base = opened(built(CASES[3], "float16"), tmp_path)
    points = list(all_points(base))
    update = Update(np.full((6, 7), 1e5))
    with pytest.raises(GraphError, match=r"reach 1e\+05, more than float16 can hold"):
        merged(base, points, [update], tmp_path / "weight")
    base = open_base(tmp_path / "base.onnx")
    with pytest.raises(GraphError, match="more than float16 can hold"):
        merged(base, points, [Update(c=np.full(6, 1e5))], tmp_path / "bias")


def test_an_update_of_another_shape_is_refused(tmp_path: Path) -> None:
    base = opened(grouped((3,)), tmp_path)
    with pytest.raises(GraphError, match=r"shape \[9, 6, 3\], the weight \[9, 2, 3\]"):
        merged(base, [grouped_point((3,))], [Update(np.ones((9, 6, 3)))], tmp_path / "out")


def test_a_factor_of_zero_is_refused(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    y = graph.node("Gemm", [x, graph.weight("w", 4, 3)], "/fc/Gemm", output="y", alpha=0.0)
    graph.output(y, ("N", 3))
    base = opened(graph.model(), tmp_path)
    points = list(all_points(base))
    with pytest.raises(GraphError, match="multiplies its weight by zero"):
        merged(base, points, [random_update(points[0], "d")], tmp_path / "out")


def test_new_values_of_another_type_or_shape_are_refused(tmp_path: Path) -> None:
    wrong: list[Array] = [np.zeros(5, np.float32), np.zeros(4, np.float16)]
    for number, values in enumerate(wrong):
        folder = tmp_path / str(number)
        folder.mkdir()
        base = opened(mixed().model(), folder, external=True)
        with pytest.raises(GraphError, match=r"expected float32\[4\]"):
            merged(base, [], [], folder / "out", {"conv.bias": values})
    with pytest.raises(GraphError, match=r"no initializer named 'conv\.scale'"):
        merged(base, [], [], folder / "again", {"conv.scale": np.zeros(4, np.float32)})


@pytest.mark.parametrize(
    ("shape", "reason"),
    [((4, 1), r"the bias has shape \[4, 1\], expected one value for each of the 3")],
)
def test_a_bias_per_row_is_refused(tmp_path: Path, shape: tuple[int, ...], reason: str) -> None:
    graph = GraphBuilder()
    x = graph.input("x", (4, 4))
    inputs = [x, graph.weight("w", 4, 3), graph.weight("bias", *shape)]
    graph.output(graph.node("Gemm", inputs, "/fc/Gemm", output="y"), (4, 3))
    base = opened(graph.model(), tmp_path)
    points = list(all_points(base))
    with pytest.raises(GraphError, match=reason):
        merged(base, points, [random_update(points[0], "c")], tmp_path / "out")


def test_a_computed_bias_is_refused(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", (4, 4))
    bias = graph.node("Relu", [graph.weight("bias", 3)], "/relu")
    y = graph.node("Gemm", [x, graph.weight("w", 4, 3), bias], "/fc/Gemm", output="y")
    graph.output(y, (4, 3))
    base = opened(graph.model(), tmp_path)
    points = list(all_points(base))
    with pytest.raises(GraphError, match="into the bias of the node: its bias is computed by Relu"):
        merged(base, points, [random_update(points[0], "c")], tmp_path / "out")
