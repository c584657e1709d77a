"""Parts of a protobuf message are counted in its bytes as they are in the message itself."""

from __future__ import annotations

from typing import Any

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, NodeProto, helper, numpy_helper

from lora_quant.graph.files.message_count import has_more_parts

PARSED = ModelProto.DESCRIPTOR
_NEVER_PACKED = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


def parts_of(message: Message) -> int:
    """Fields of a parsed message; numbers that are packed are one field, empty ones none."""
    total = 0
    for field, value in message.ListFields():
        many = hasattr(value, "append") or hasattr(value, "add")
        if field.message_type is not None:
            items = list(value) if many else [value]
            total += len(items) + sum(parts_of(item) for item in items)
        else:
            total += len(value) if many and field.type in _NEVER_PACKED else 1
    return total


def model_of(sizes: list[int]) -> ModelProto:
    """A node for each size, with attributes of every wire type, in subgraphs of rising depth."""
    nodes: list[NodeProto] = []
    for number, size in enumerate(sizes):
        given: dict[str, Any] = {"s": "x" * size, "i": 2**size, "f": 0.5}
        node = helper.make_node("Op", ["x"] * (size % 3), [f"y{number}"], **given)
        if nodes and size % 2:
            inner = helper.make_graph(nodes, "inner", [], [])
            node.attribute.append(helper.make_attribute("body", inner))
            nodes = []
        nodes.append(node)
    graph = helper.make_graph(nodes, "g", [], [])
    for number, size in enumerate(sizes):
        values: NDArray[np.float64] = np.zeros(size)
        graph.initializer.append(numpy_helper.from_array(values, f"w{number}"))
    return helper.make_model(graph)


@settings(max_examples=40)
@given(sizes=st.lists(st.integers(0, 60), max_size=6))
def test_the_count_is_exact(sizes: list[int]) -> None:
    model = model_of(sizes)
    data, parts = model.SerializeToString(), parts_of(model)
    assert has_more_parts(data, PARSED, parts - 1)
    assert not has_more_parts(data, PARSED, parts)


@settings(max_examples=40)
@given(sizes=st.lists(st.integers(0, 60), max_size=4), share=st.floats(0, 1))
def test_what_is_cut_off_has_no_more_parts(sizes: list[int], share: float) -> None:
    model = model_of(sizes)
    data, parts = model.SerializeToString(), parts_of(model)
    assert not has_more_parts(data[: round(share * len(data))], PARSED, parts)


def test_fixed_numbers_of_either_width_and_groups_are_passed_over() -> None:
    """Fields that no message of ONNX has: keys of wire types 1, 5, 3 and 4, then a number."""
    number = AttributeProto.INT
    eight, four, group = b"\xf9\x07" + bytes(8), b"\xfd\x07" + bytes(4), b"\xfb\x07"
    plain = b"\x08" + bytes([number])
    for data, parts in ((eight, 1), (four, 1), (group, 1), (plain, 1)):
        assert has_more_parts(data + plain, PARSED, parts)
        assert not has_more_parts(data + plain, PARSED, parts + 1)


def test_what_comes_behind_a_key_of_no_type_is_not_looked_at() -> None:
    """Wire types 6 and 7 are none; the parser refuses them."""
    plain = b"\x08\x01"
    assert not has_more_parts(b"\xfe\x07" + 5 * plain, PARSED, 1)


def test_what_is_deeper_than_protobuf_reads_is_not_looked_at() -> None:
    """Models in models do not exist; graphs in attributes of nodes are as deep as the bytes say."""
    data = b""
    for _ in range(60):
        # graph {node {attribute {g {...}}}}: fields 1, 5 and 6, with the model's own field 7 last.
        for key in (6, 5, 1):
            data = bytes([key << 3 | 2]) + _size(len(data)) + data
    data = b"\x3a" + _size(len(data)) + data
    # Depths 0 to 100 are read: the model's own field, and one in each of 100 messages below it.
    assert has_more_parts(data, PARSED, 100)
    assert not has_more_parts(data, PARSED, 101)


def _size(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
