"""Comparing a use case's graph with the final graph: every difference is found, and named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from lora_quant.errors import GraphError
from lora_quant.graph.exported.same_graph import check_same_graph
from lora_quant.graph.files.model_file import ModelFile
from tests.sample import ROOT

GRAPH = ROOT / "tests" / "fixtures" / "aimet" / "network" / "base_lora_zero.fp32.onnx"
GIVEN = onnx.load(str(GRAPH))
LORA = frozenset(t.name for t in GIVEN.graph.initializer if "lora" in t.name)
OTHERS = sorted(t.name for t in GIVEN.graph.initializer if t.name not in LORA)


def opened(proto: onnx.ModelProto, name: str) -> ModelFile:
    return ModelFile(Path(name), proto, ())


def copy() -> onnx.ModelProto:
    other = onnx.ModelProto()
    other.CopyFrom(GIVEN)
    return other


def change(proto: onnx.ModelProto, name: str, where: float) -> int:
    """Change one value; `where` from 0 to 1 tells which. Returns its number."""
    (tensor,) = [t for t in proto.graph.initializer if t.name == name]
    values = numpy_helper.to_array(tensor).copy()
    number = int(where * (values.size - 1))
    values.flat[number] = np.nextafter(values.flat[number], np.float32(9))
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    return number


@given(name=st.sampled_from(OTHERS), where=st.floats(0, 1))
def test_one_bit_of_any_other_weight_is_found(name: str, where: float) -> None:
    other = copy()
    number = change(other, name, where)
    with pytest.raises(GraphError, match=f"as element {number} of an initializer") as caught:
        check_same_graph(opened(GIVEN, "given"), opened(other, "other"), LORA)
    assert (caught.value.where.file, caught.value.where.tensor) == (Path("other"), name)


def test_an_input_of_another_type_is_told_with_both_types() -> None:
    other = copy()
    name = other.graph.input[0].name
    other.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    with pytest.raises(GraphError) as caught:
        check_same_graph(opened(GIVEN, "given"), opened(other, "other"), LORA)
    assert f"got the input {name!r} (float16 of shape" in caught.value.message
    assert f"expected {name!r} (float of shape" in caught.value.message


@given(names=st.sets(st.sampled_from(sorted(LORA))), where=st.floats(0, 1))
def test_any_value_of_a_lora_weight_is_free(names: set[str], where: float) -> None:
    other = copy()
    for name in names:
        change(other, name, where)
    check_same_graph(opened(GIVEN, "given"), opened(other, "other"), LORA)


@given(order=st.permutations(range(len(GIVEN.graph.initializer))))
def test_the_order_of_initializers_is_free(order: list[int]) -> None:
    other = copy()
    tensors = [GIVEN.graph.initializer[number] for number in order]
    del other.graph.initializer[:]
    other.graph.initializer.extend(tensors)
    check_same_graph(opened(GIVEN, "given"), opened(other, "other"), LORA)


def test_a_graph_that_lacks_an_initializer_is_named() -> None:
    other = copy()
    (gone,) = [n for n, t in enumerate(other.graph.initializer) if t.name == "fc.bias"]
    del other.graph.initializer[gone]
    with pytest.raises(GraphError, match="got no initializer of this name, expected one") as caught:
        check_same_graph(opened(GIVEN, "given"), opened(other, "other"), LORA)
    assert caught.value.where.tensor == "fc.bias"


def test_other_sparse_initializers_are_a_difference() -> None:
    other = copy()
    sparse = other.graph.sparse_initializer.add(dims=[4])
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "sparse"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.zeros(1, np.int64), "indices"))
    with pytest.raises(GraphError, match="got other sparse initializers"):
        check_same_graph(opened(GIVEN, "given"), opened(other, "other"), LORA)
