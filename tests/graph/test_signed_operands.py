"""Second factors of products of activations get a signed grid; everything else stays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from lora_quant.errors import GraphError, Where
from lora_quant.graph.device.signed_operands import HIGHEST_SIGNED, sign_operands

Array = NDArray[Any]
SHAPE = [4, 4]
# x from -1 to 3, 0 on the grid.
STEP, ZERO = 2.0**-14, 2**14
FARTHEST = (2**16 - 1 - ZERO) * STEP


def model(nodes: list[NodeProto], types: Mapping[str, int], *, codes: bool = False) -> ModelProto:
    """Inputs a and b, each behind Q/DQ of its type; or b as codes that are fed."""
    pairs: list[NodeProto] = []
    stored = []
    inputs = []
    for name, element in types.items():
        zero = np.array(ZERO if element == TensorProto.UINT16 else 64)
        dtype = helper.tensor_dtype_to_np_dtype(element)
        stored += [
            numpy_helper.from_array(np.array(STEP, np.float32), f"{name}_scale"),
            numpy_helper.from_array(zero.astype(dtype), f"{name}_zero"),
        ]
        grid = [f"{name}_scale", f"{name}_zero"]
        domain = {"domain": "com.microsoft"}
        if codes and name == "b":
            inputs.append(helper.make_tensor_value_info("b_codes", element, SHAPE))
        else:
            inputs.append(helper.make_tensor_value_info(f"{name}_raw", TensorProto.FLOAT, SHAPE))
            pairs.append(
                helper.make_node(
                    "QuantizeLinear", [f"{name}_raw", *grid], [f"{name}_codes"], **domain
                )
            )
        pairs.append(
            helper.make_node("DequantizeLinear", [f"{name}_codes", *grid], [name], **domain)
        )
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, SHAPE)
    graph = helper.make_graph([*pairs, *nodes], "g", inputs, [output], stored)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


def product(*inputs: str) -> NodeProto:
    return helper.make_node("MatMul", inputs, ["y"], name="product")


WIDE = {"a": TensorProto.UINT16, "b": TensorProto.UINT16}


def run(proto: ModelProto, feeds: dict[str, Array], output: str) -> Array:
    copy = ModelProto()
    copy.CopyFrom(proto)
    copy.graph.output.add().name = output
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        copy.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: Array = session.run([output], feeds)[0]
    return found


def test_the_second_factor_is_read_from_a_signed_grid() -> None:
    proto = model([product("a", "b")], WIDE)
    assert sign_operands(proto, Where()) == ("b",)
    (node,) = (n for n in proto.graph.node if n.name == "product")
    assert list(node.input) == ["a", "b_signed"]
    rng = np.random.default_rng(0)
    feeds = {f"{name}_raw": rng.uniform(-1, 3, SHAPE).astype(np.float32) for name in "ab"}
    before, after = run(proto, feeds, "b"), run(proto, feeds, "b_signed")
    # Rounded once more, to a grid as wide as the farther end of the other.
    step = FARTHEST / HIGHEST_SIGNED
    # float32 adds less than a millionth of the values themselves.
    assert np.abs(after - before).max() <= step / 2 + 3e-6


def test_both_ends_of_the_grid_have_codes_that_the_device_multiplies() -> None:
    """It takes codes above 0x7f7f for 0x7f7f, byte by byte."""
    assert HIGHEST_SIGNED == 127 * 256 + 127
    proto = model([product("a", "b")], WIDE)
    sign_operands(proto, Where())
    ends = np.zeros(SHAPE, np.float32)
    ends[0, :2] = -100, 100
    codes = run(proto, {"a_raw": ends, "b_raw": ends}, "b_signed_quantized")
    assert codes.dtype == np.int16
    assert codes[0, 1] == HIGHEST_SIGNED
    assert codes[0, 0] == round(-1 / (FARTHEST / HIGHEST_SIGNED))
    assert codes[1, 0] == 0


@pytest.mark.parametrize(
    ("nodes", "types", "codes"),
    [
        ([product("a", "b")], {**WIDE, "b": TensorProto.UINT8}, False),
        ([product("a", "b")], {**WIDE, "a": TensorProto.UINT8}, False),
        ([product("a", "b")], WIDE, True),
        ([helper.make_node("Mul", ["a", "b"], ["y"])], WIDE, False),
    ],
    ids=["8 bits", "8 bits by 16", "a weight", "element by element"],
)
def test_other_products_stay(nodes: list[NodeProto], types: Mapping[str, int], codes: bool) -> None:
    proto = model(nodes, types, codes=codes)
    before = proto.SerializeToString(deterministic=True)
    assert sign_operands(proto, Where()) == ()
    assert proto.SerializeToString(deterministic=True) == before


def test_a_factor_of_two_products_has_one_signed_grid() -> None:
    first = helper.make_node("MatMul", ["a", "b"], ["first"], name="first")
    last = helper.make_node("MatMul", ["a", "b"], ["y"], name="last")
    proto = model([first, last], WIDE)
    assert sign_operands(proto, Where()) == ("b",)
    readers = [n for n in proto.graph.node if "b_signed" in n.input]
    assert [n.name for n in readers] == ["first", "last"]
    names = [n.name for n in proto.graph.node if n.name]
    assert len(names) == len(set(names))


def test_a_name_that_is_taken_is_refused_with_the_tensor() -> None:
    proto = model([product("a", "b")], WIDE)
    taken = numpy_helper.from_array(np.zeros(1, np.float32), "b_signed_scale")
    proto.graph.initializer.append(taken)
    with pytest.raises(
        GraphError, match="the name 'b_signed_scale', which the graph has"
    ) as caught:
        sign_operands(proto, Where())
    assert caught.value.where.tensor == "b"
