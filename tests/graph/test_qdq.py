"""What Q/DQ insertion makes of a graph: names, types, order, domains, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper

from lora_quant.errors import GraphError, Where
from lora_quant.graph.quantized.grid import Grid
from lora_quant.graph.quantized.qdq import insert_qdq
from lora_quant.graph.quantized.qdq_records import (
    ActivationQdq,
    ExternalCodes,
    OverridableInput,
    WeightQdq,
)
from lora_quant.graph.records import TensorRecord
from tests.builders import GraphBuilder

FILE = Path("base.onnx")


def per_tensor(dtype: str = "uint8") -> Grid:
    return Grid(dtype, np.array([0.5], np.float32), np.array([3], dtype))


def per_column(dtype: str = "int8", columns: int = 6) -> Grid:
    return Grid(dtype, np.full(columns, 0.5, np.float32), np.zeros(columns, dtype), axis=1)


def of_blocks() -> Grid:
    return Grid("int8", np.ones((2, 6), np.float32), np.zeros((2, 6), np.int8), 0, 4)


def graph(opset: int = 17, dtype: str = "float32") -> ModelProto:
    """x -> MatMul(w) -> h -> Relu -> y, and Neg(x) -> z."""
    builder = GraphBuilder(dtype)
    x = builder.input("x", ("rows", 8))
    h = builder.matmul("linear", x, in_features=8, out_features=6, weight="w", output="h")
    builder.value("h", ("rows", 6))
    builder.output(builder.node("Relu", [h], "relu", "y"), ("rows", 6))
    builder.output(builder.node("Neg", [x], "neg", "z"), ("rows", 8))
    return builder.model(opset=opset)


def printed(model: ModelProto) -> list[str]:
    return [
        f"{node.domain}{'.' if node.domain else ''}{node.op_type}"
        f"({', '.join(node.input)}) -> {', '.join(node.output)}"
        for node in model.graph.node
    ]


def test_names_and_order_are_those_of_the_rule() -> None:
    model = graph()
    insert_qdq(
        model,
        activations={
            "h": ActivationQdq(per_tensor()),
            "x": ActivationQdq(per_tensor()),
            "y": ActivationQdq(per_tensor("uint16")),
        },
        weights={"w": WeightQdq(per_column())},
    )
    assert printed(model) == [
        "DequantizeLinear(w_quantized, w_scale, w_zero_point) -> w",
        "QuantizeLinear(x, x_scale, x_zero_point) -> x_quantized",
        "DequantizeLinear(x_quantized, x_scale, x_zero_point) -> x_dequantized",
        "MatMul(x_dequantized, w) -> h_raw",
        "QuantizeLinear(h_raw, h_scale, h_zero_point) -> h_quantized",
        "DequantizeLinear(h_quantized, h_scale, h_zero_point) -> h",
        "Relu(h) -> y_raw",
        "com.microsoft.QuantizeLinear(y_raw, y_scale, y_zero_point) -> y_quantized",
        "com.microsoft.DequantizeLinear(y_quantized, y_scale, y_zero_point) -> y",
        "Neg(x_dequantized) -> z",
    ]
    assert [value.name for value in model.graph.input] == ["x"]
    assert [value.name for value in model.graph.output] == ["y", "z"]
    types = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    assert types["h"] == types["h_raw"] == TensorProto.FLOAT
    assert types["h_quantized"] == TensorProto.UINT8
    # A per-tensor constant has no axes, as the standard has it.
    assert {tuple(t.dims) for t in model.graph.initializer if t.name.startswith("h_")} == {()}


@pytest.mark.parametrize("dtype", ["int8", "uint16"])
@pytest.mark.parametrize("opset", [13, 21])
def test_the_graph_is_valid(opset: int, dtype: str) -> None:
    model = graph(opset)
    insert_qdq(
        model,
        activations={"h": ActivationQdq(per_tensor(dtype)), "x": ActivationQdq(per_tensor(dtype))},
        weights={"w": WeightQdq(per_column(dtype), overridable_values=True)},
    )
    onnx.checker.check_model(model, full_check=opset == 21 or dtype == "int8")


def test_what_may_switch_becomes_an_input_with_a_default() -> None:
    model = graph()
    made = insert_qdq(
        model,
        activations={"h": ActivationQdq(per_tensor(), overridable=True)},
        weights={
            "w": WeightQdq(
                per_column(),
                overridable_values=True,
                overridable_grid=True,
                dims=(8, "lora_rank_0"),
            )
        },
    )
    assert made == (
        OverridableInput(TensorRecord("w_quantized", (8, -1), "int8"), "w", "values"),
        OverridableInput(TensorRecord("w_scale", (-1,), "float32"), "w", "scale"),
        OverridableInput(TensorRecord("w_zero_point", (-1,), "int8"), "w", "zero_point"),
        OverridableInput(TensorRecord("h_scale", (1,), "float32"), "h", "scale"),
        OverridableInput(TensorRecord("h_zero_point", (1,), "uint8"), "h", "zero_point"),
    )
    names = [one.record.name for one in made]
    assert [value.name for value in model.graph.input] == ["x", *names]
    dims = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in model.graph.input
    }
    assert dims["w_quantized"] == [8, "lora_rank_0"]
    assert dims["w_scale"] == ["lora_rank_0"]
    stored = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    assert set(names) == set(stored)
    assert stored["h_scale"] == (1,)


def test_blocks_along_an_open_axis_have_a_name_of_their_own() -> None:
    model = graph(21)
    made = insert_qdq(
        model,
        activations={},
        weights={"w": WeightQdq(of_blocks(), overridable_grid=True, dims=("r", 6))},
    )
    assert [one.record.shape for one in made] == [(-1, 6), (-1, 6)]
    (scale,) = (v for v in model.graph.input if v.name == "w_scale")
    assert scale.type.tensor_type.shape.dim[0].dim_param == "r_blocks"


def test_a_weight_that_was_an_input_is_none_any_more() -> None:
    model = graph()
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [8, 6]))
    made = insert_qdq(model, activations={}, weights={"w": WeightQdq(per_column())})
    assert made == ()
    assert [value.name for value in model.graph.input] == ["x"]


def test_codes_may_lie_in_a_data_file(tmp_path: Path) -> None:
    codes = np.arange(-24, 24, dtype=np.int8).reshape(8, 6)
    (tmp_path / "codes.bin").write_bytes(b"\0" * 64 + codes.tobytes())
    model = graph()
    weight = WeightQdq(per_column(), ExternalCodes("codes.bin", 64, (8, 6)))
    insert_qdq(model, activations={}, weights={"w": weight})
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    engine = ort.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    got = engine.run(["y"], {"x": np.eye(8, dtype=np.float32)})[0]
    assert np.array_equal(got, np.maximum(codes, 0) * np.float32(0.5))  # one product each: exact


def test_a_subgraph_reads_the_quantized_input() -> None:
    model = graph()
    inner = helper.make_graph(
        [helper.make_node("Abs", ["x"], ["inner"])],
        "inner",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, ["rows", 8])],
    )
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    model.graph.node.append(
        helper.make_node("If", ["c"], ["v"], then_branch=inner, else_branch=inner)
    )
    insert_qdq(model, activations={"x": ActivationQdq(per_tensor())}, weights={})
    bodies = [a.g.node[0].input[0] for a in model.graph.node[-1].attribute]
    assert bodies == ["x_dequantized"] * 2


def test_an_initializer_that_is_an_activation_gets_q_and_dq() -> None:
    model = graph()
    insert_qdq(model, activations={"w": ActivationQdq(per_tensor())}, weights={})
    assert "MatMul(x, w_dequantized) -> h" in printed(model)


def test_nothing_to_insert_changes_nothing() -> None:
    model = graph()
    before = model.SerializeToString(deterministic=True)
    assert insert_qdq(model, activations={}, weights={}) == ()
    assert model.SerializeToString(deterministic=True) == before


def _twice(model: ModelProto) -> None:
    insert_qdq(model, activations={"h": ActivationQdq(per_tensor())}, weights={})


def _taken(model: ModelProto) -> None:
    model.graph.node[2].output[0] = "h_raw"
    model.graph.output[1].name = "h_raw"


def _whole_numbers(model: ModelProto) -> None:
    (weight,) = model.graph.initializer
    weight.data_type = TensorProto.INT32


def _unchanged(model: ModelProto) -> None:
    pass


@pytest.mark.parametrize(
    ("prepare", "asked", "text"),
    [
        (_twice, {"activations": "h"}, "Q/DQ nodes in the graph already"),
        (_twice, {"activations": "h_raw"}, "Q/DQ nodes in the graph already"),
        (_taken, {"activations": "h"}, "needs the name 'h_raw'"),
        (_unchanged, {"activations": "q"}, "no tensor of this name"),
        (_unchanged, {"weights": "h"}, "no initializer of this name"),
        (_whole_numbers, {"weights": "w"}, "type int32 cannot be quantized, expected float32"),
        (_unchanged, {"blocks": "w"}, "blocks of 4 values needs opset 21, .* opset 17"),
    ],
)
def test_a_refusal_names_the_tensor_and_leaves_the_graph_as_it_was(
    prepare: Callable[[ModelProto], None], asked: dict[str, str], text: str
) -> None:
    model = graph()
    prepare(model)
    before = model.SerializeToString(deterministic=True)
    activations: dict[str, ActivationQdq] = {}
    weights: dict[str, WeightQdq] = {}
    for kind, name in asked.items():
        if kind == "activations":
            # The first one alone would be fine.
            activations = {n: ActivationQdq(per_tensor()) for n in ("y", name)}
        else:
            weights = {name: WeightQdq(of_blocks() if kind == "blocks" else per_column())}
    with pytest.raises(GraphError, match=text) as caught:
        insert_qdq(model, activations=activations, weights=weights, where=Where(file=FILE))
    assert caught.value.where == Where(file=FILE, tensor=next(iter(asked.values())))
    assert caught.value.hint
    assert model.SerializeToString(deterministic=True) == before


def test_codes_of_another_type_than_their_grid_are_a_defect() -> None:
    weight = WeightQdq(per_column(), np.zeros((8, 6), np.int64))
    with pytest.raises(TypeError, match="w_quantized is int8, its values are int64"):
        insert_qdq(graph(), activations={}, weights={"w": weight})


def test_time_is_linear_in_the_nodes() -> None:
    """A walk per tensor would look at 4 * 10**8 nodes."""
    count = 20_000
    builder = GraphBuilder()
    x: Any = builder.input("x", (2,))
    for number in range(count):
        x = builder.node("Neg", [x], f"n{number}", f"t{number}")
    builder.output(x, (2,))
    model = builder.model()
    asked = {f"t{number}": ActivationQdq(per_tensor()) for number in range(count)}
    insert_qdq(model, activations=asked, weights={})
    assert len(model.graph.node) == 3 * count
    assert model.graph.node[3].op_type == "Neg"
    assert model.graph.node[3].input[0] == "t0"
