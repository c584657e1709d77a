"""Where parameters of the source model are stored, and why one cannot be replaced."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from lora_quant.errors import AttachPointError, Where
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.records import ReplacedParameter, TensorRecord
from lora_quant.graph.values.parameters import find_parameter, parameter_values
from tests.builders import GraphBuilder
from tests.graph.helpers import branch, opened, resolve
from tests.graph.requests import asked

HERE = Where(adapter="tone")


def model(dtype: str = "float32") -> GraphBuilder:
    """ids -> embed_tokens -> norm -> fc (MatMul, Add) -> head (Gemm, as GPT-2's Conv1D)."""
    graph = GraphBuilder(dtype)
    ids = graph.input("ids", ("N",), "int64")
    x = graph.node("Gather", [graph.weight("model.embed_tokens.weight", 9, 4), ids], "/model/e")
    x = graph.node("Mul", [x, graph.weight("model.norm.weight", 4)], "/model/norm/Mul")
    x = graph.matmul("/model/fc/MatMul", x, in_features=4, out_features=4)
    x = graph.node("Add", [graph.weight("onnx::Add_7", 4), x], "/model/fc/Add")
    inputs = [x, graph.weight("model.head.weight", 4, 4), graph.weight("model.head.bias", 4)]
    graph.output(graph.node("Gemm", inputs, "/model/head/Gemm"), ("N", 4))
    return graph


def found(base: BaseGraph, parameter: str) -> ReplacedParameter:
    return find_parameter(base, parameter, HERE)


def refusal(base: BaseGraph, parameter: str) -> str:
    with pytest.raises(AttachPointError) as caught:
        found(base, parameter)
    assert caught.value.where.adapter == "tone"
    return str(caught.value)


@pytest.mark.parametrize("prefix", ["model.", "", "base.model."])
@pytest.mark.parametrize(
    ("parameter", "initializer", "shape", "transposed"),
    [
        ("embed_tokens.weight", "model.embed_tokens.weight", (9, 4), False),
        ("norm.weight", "model.norm.weight", (4,), False),
        ("fc.weight", "onnx::MatMul_2", (4, 4), True),
        ("fc.bias", "onnx::Add_7", (4,), False),
        ("head.weight", "model.head.weight", (4, 4), False),
        ("head.bias", "model.head.bias", (4,), False),
    ],
)
def test_every_parameter_has_its_initializer(
    tmp_path: Path,
    prefix: str,
    parameter: str,
    initializer: str,
    shape: tuple[int, ...],
    transposed: bool,
) -> None:
    base = opened(model().model(), tmp_path)
    path = prefix + parameter
    expected = ReplacedParameter(path, TensorRecord(initializer, shape, "float32"), transposed)
    assert found(base, path) == expected


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_values_are_those_of_the_graph(tmp_path: Path, dtype: str, external: bool) -> None:
    graph = model(dtype)
    base = opened(graph.model(), tmp_path, external=external)
    branch(base, resolve(base, [asked("model.fc", 4, 4)]).points)
    one = found(base, "model.embed_tokens.weight")
    values = parameter_values(base, one)
    assert one.weight.dtype == values.dtype.name == dtype
    assert np.array_equal(values, graph.weights["model.embed_tokens.weight"])
    values[0] = 0  # its own copy
    assert not np.array_equal(values, parameter_values(base, one))


def linear(name: str, shape: tuple[int, int], op: str = "MatMul", flip: bool = False) -> ModelProto:
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    w = graph.weight(name, *shape)
    if flip:
        w = graph.node("Transpose", [w], "/fc/Transpose", perm=[1, 0])
    out = shape[0] if flip else shape[1]
    graph.output(graph.node(op, [x, w], f"/fc/{op}"), ("N", out))
    return graph.model()


@pytest.mark.parametrize(
    ("name", "parameter", "op", "flip", "transposed"),
    [
        ("onnx::MatMul_3", "fc.weight", "MatMul", False, True),
        ("fc.weight_transposed", "fc.weight", "MatMul", False, True),
        ("fc.MatMul.weight", "fc.weight", "MatMul", False, True),
        ("fc.weight", "fc.weight", "MatMul", False, True),
        ("fc.weight", "fc.weight", "MatMul", True, False),
        ("fc.weight", "fc.weight", "Gemm", False, False),
        ("fc.projection", "fc.projection", "MatMul", False, False),
    ],
)
def test_which_way_round_a_square_weight_is_stored(
    tmp_path: Path, name: str, parameter: str, op: str, flip: bool, transposed: bool
) -> None:
    base = opened(linear(name, (4, 4), op, flip), tmp_path)
    assert found(base, parameter).transposed == transposed


def test_a_known_shape_tells_which_way_round(tmp_path: Path) -> None:
    base = opened(linear("fc.weight", (4, 6)), tmp_path)
    for shape, transposed in (((4, 6), False), ((6, 4), True), ((9, 9), True)):
        one = find_parameter(base, "fc.weight", HERE, shape=shape)
        assert one.transposed == transposed


def test_attention_modules_have_parameters_of_their_own(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    x = graph.node("MatMul", [x, graph.weight("onnx::MatMul_9", 4, 12)], "/mha/MatMul")
    x = graph.node("Add", [x, graph.weight("mha.in_proj_bias", 12)], "/mha/Add")
    inputs = [x, graph.weight("mha.out_proj.weight", 4, 12), graph.weight("mha.out_proj.bias", 4)]
    graph.output(graph.node("Gemm", inputs, "/mha/Gemm", transB=1), ("N", 4))
    base = opened(graph.model(), tmp_path)
    names = {"mha.in_proj_weight": "onnx::MatMul_9", "mha.in_proj_bias": "mha.in_proj_bias"}
    names |= {f"mha.out_proj.{leaf}": f"mha.out_proj.{leaf}" for leaf in ("weight", "bias")}
    for parameter, initializer in names.items():
        one = found(base, parameter)
        assert one.weight.name == initializer
        assert one.transposed == (parameter == "mha.in_proj_weight")


def test_names_of_other_parameters_are_not_cut(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    x = graph.node("Mul", [x, graph.weight("fc.weight_g", 4)], "/fc/Mul")
    graph.output(x, ("N", 4))
    base = opened(graph.model(), tmp_path)
    assert found(base, "fc.weight_g").weight.name == "fc.weight_g"
    assert "the graph has no parameter 'fc.weight'" in refusal(base, "fc.weight")


def test_a_parameter_of_the_model_itself(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    graph.output(graph.node("Add", [x, graph.weight("position", 4)], "/Add"), ("N", 4))
    assert found(opened(graph.model(), tmp_path), "position").weight.name == "position"


def norms(*, named: bool = True, first: str = "a", second: str = "b") -> GraphBuilder:
    """Two norms whose weights are equal: one initializer, with an Identity of the other's name."""
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    same = graph.weight("a.weight", 4)
    if named:
        same = graph.node("Identity", [same], "Identity_0", "b.weight")
    x = graph.node("Mul", [x, "a.weight"], f"/{first}/Mul" if first else "")
    x = graph.node("Mul", [x, same], f"/{second}/Mul" if second else "", "y")
    graph.output(x, ("N", 4))
    return graph


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("parameter", ["a.weight", "b.weight"])
def test_parameters_that_were_equal(tmp_path: Path, parameter: str, named: bool) -> None:
    base = opened(norms(named=named).model(), tmp_path)
    text = refusal(base, parameter)
    other = "b" if parameter == "a.weight" else "a"
    assert f"the graph stores it once for several modules, among them {other!r}" in text
    assert "neither shared nor equal" in text
    one = find_parameter(base, parameter, HERE, together=("a.weight", "b.weight"))
    assert one.weight.name == "a.weight"


def test_a_module_that_is_called_twice_shares_with_nobody(tmp_path: Path) -> None:
    base = opened(norms(named=False, second="a").model(), tmp_path)
    assert found(base, "a.weight").weight.name == "a.weight"


def test_nodes_without_names_may_be_of_any_module(tmp_path: Path) -> None:
    base = opened(norms(named=False, first="", second="").model(), tmp_path)
    assert "among them '_output_0' and 'y'" in refusal(base, "a.weight")


def tied() -> GraphBuilder:
    graph = GraphBuilder()
    ids = graph.input("ids", ("N",), "int64")
    table = graph.weight("model.embed_tokens.weight", 9, 4)
    x = graph.node("Gather", [table, ids], "/model/embed_tokens/Gather")
    w = graph.node("Transpose", [table], "/lm_head/Transpose", perm=[1, 0])
    graph.output(graph.node("MatMul", [x, w], "/lm_head/MatMul"), ("N", 9))
    return graph


def test_a_tied_table_is_replaced_for_both_or_not_at_all(tmp_path: Path) -> None:
    base = opened(tied().model(), tmp_path)
    assert "among them 'lm_head'" in refusal(base, "model.embed_tokens.weight")
    assert "among them 'model.embed_tokens'" in refusal(base, "lm_head.weight")
    both = ("embed_tokens.weight", "lm_head.weight")
    for parameter in both:
        one = find_parameter(base, parameter, HERE, together=both)
        assert (one.weight.name, one.transposed) == ("model.embed_tokens.weight", False)


def test_a_parameter_that_a_subgraph_reads_too(tmp_path: Path) -> None:
    graph = model()
    flag = graph.input("flag", (), "bool")
    inner = helper.make_node("Identity", ["model.norm.weight"], ["inner"])
    value = helper.make_tensor_value_info("inner", TensorProto.FLOAT, [4])
    body = helper.make_graph([inner], "body", [], [value])
    graph.output(graph.node("If", [flag], "/If", then_branch=body, else_branch=body), (4,))
    base = opened(graph.model(), tmp_path)
    assert "among them 'a subgraph'" in refusal(base, "model.norm.weight")


def test_a_head_that_bears_the_name_of_the_table(tmp_path: Path) -> None:
    # torch.export keeps the last of two tied names for the table, and stores the head transposed.
    graph = GraphBuilder()
    ids = graph.input("ids", ("N",), "int64")
    x = graph.node("Gather", [graph.weight("lm_head.weight", 9, 4), ids], "/embed_tokens/Gather")
    graph.output(graph.node("MatMul", [x, graph.weight("val_3", 4, 9)], "/lm_head/M"), ("N", 9))
    base = opened(graph.model(), tmp_path)
    assert found(base, "lm_head.weight").weight.name == "val_3"
    assert found(base, "embed_tokens.weight").weight.name == "lm_head.weight"


def test_an_unknown_parameter_lists_near_names(tmp_path: Path) -> None:
    base = opened(model().model(), tmp_path)
    text = refusal(base, "model.norm_f.weight")
    assert "the graph has no parameter 'model.norm_f.weight'" in text
    assert "did you mean 'model.norm.weight'" in text


def test_an_ambiguous_parameter_names_all(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    for side in ("encoder", "decoder"):
        x = graph.node("Mul", [x, graph.weight(f"{side}.norm.weight", 4)], f"/{side}/norm/Mul")
    graph.output(x, ("N", 4))
    base = opened(graph.model(), tmp_path)
    text = refusal(base, "norm.weight")
    assert "fits 2 tensors of the graph, expected exactly one: 'decoder.norm.weight', 'enc" in text
    assert found(base, "encoder.norm.weight").weight.name == "encoder.norm.weight"


def quantized() -> GraphBuilder:
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    stored = graph.constant("fc.weight_quantized", np.ones((4, 4), np.int8))
    w = graph.node(
        "DequantizeLinear", [stored, graph.constant("s", np.array(1, np.float32))], "/dq"
    )
    x = graph.node("MatMul", [x, w], "/fc/MatMul")
    scale = graph.constant("norm.weight", np.ones(4, np.int8))
    x = graph.node("Mul", [x, graph.node("Cast", [scale], "/cast", to=1)], "/norm/Mul")
    whole = graph.matmul("/attn/qkv_proj/MatMul", x, in_features=4, out_features=12)
    w = graph.node("Constant", [], "/w", value=helper.make_tensor("w", 1, (12, 4), [0.0] * 48))
    graph.output(graph.node("MatMul", [whole, w], "/last/MatMul"), ("N", 4))
    graph.value("val_1", (4,))
    return graph


@pytest.mark.parametrize(
    ("parameter", "reason"),
    [
        ("fc.weight", "it is stored as int8, expected float32, float16 or bfloat16"),
        ("norm.weight", "it is stored as int8, expected float32, float16 or bfloat16"),
        ("attn.q_proj.weight", "the graph computes its module together with others, in one node"),
        ("last.weight", "it is the value of a Constant node"),
        ("wpe.weight", "the exporter folded it into 'val_1'"),
    ],
)
def test_what_cannot_be_replaced(tmp_path: Path, parameter: str, reason: str) -> None:
    source = quantized().model(ir_version=10)
    for value in source.graph.value_info:
        value.metadata_props.add(
            key="pkg.onnxscript.optimizer.folded_from", value="['arange', 'model.wpe.weight']"
        )
    base = opened(source, tmp_path)
    text = refusal(base, parameter)
    assert re.search(re.escape(f"{parameter!r} cannot be replaced: {reason}"), text)
    assert "keeps this parameter as a float initializer" in text


def test_a_weight_that_only_its_node_tells_to_be_quantized(tmp_path: Path) -> None:
    graph = GraphBuilder()
    x = graph.input("x", ("N", 4))
    packed = graph.constant("B_1", np.zeros((4, 1, 8), np.uint8))
    sizes: dict[str, Any] = {"K": 4, "N": 4, "bits": 4, "block_size": 16}
    inputs = [x, packed, graph.weight("s_1", 4)]
    y = graph.node("MatMulNBits", inputs, "/fc/MatMul", domain="com.microsoft", **sizes)
    graph.output(y, ("N", 4))
    base = opened(graph.model(other_domains=["com.microsoft"]), tmp_path)
    assert "it is stored as uint8, expected float32" in refusal(base, "fc.weight")
