"""Whatever a file of encodings holds, the checks answer with findings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.encoding_file import EncodingFile
from lora_quant.encodings.kinds import Granularity
from lora_quant.errors import Where
from lora_quant.graph.files.graph_facts import GraphFacts, TensorFact, TensorRole
from lora_quant.graph.files.linear_facts import LinearFact
from lora_quant.validation.catalogue import RULES
from lora_quant.validation.device.encodings import encodings_for_devices, meetings_for_devices
from lora_quant.validation.linked.encodings import encodings_against_graph

NAMES = ("x", "w", "b", "y", "q.lora_A.weight", "other")


@st.composite
def grids(draw: st.DrawFn) -> Encoding:
    """Encodings of every structure, with sizes that need not fit anything."""
    bits = draw(st.sampled_from([2, 4, 8, 16, 32]))
    if draw(st.booleans()) and bits >= 16:
        return Encoding.floating(bits)
    kind = draw(st.sampled_from(list(Granularity)))
    step = draw(st.floats(2.0**-140, 2.0**120))
    count, blocks = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    symmetric = draw(st.booleans())
    offset = float(draw(st.integers(-(2**bits - 1), 0)))
    axis = draw(st.sampled_from([None, -3, -1, 0, 1, 2, 7]))
    size = draw(st.sampled_from([1, 8, 16, 24]))
    if kind is Granularity.PER_TENSOR:
        return Encoding.per_tensor(step, offset, bits=bits, symmetric=symmetric)
    if kind is Granularity.PER_CHANNEL:
        full = np.full(count, step), np.full(count, offset)
        return Encoding.per_channel(*full, bits=bits, symmetric=symmetric, axis=axis)
    block_axis = None if axis in (None, 1) else 1
    if kind is Granularity.PER_BLOCK:
        shape = (count, blocks) if block_axis is not None else (count * blocks,)
        return Encoding.per_block(
            np.full(shape, step),
            np.full(shape, offset),
            bits=bits,
            symmetric=symmetric,
            block_size=size,
            axis=axis,
            block_axis=block_axis,
            ndim=draw(st.sampled_from([None, 2, 4])),
        )
    return Encoding.lpbq(
        np.full(count, step),
        np.ones((count, blocks)),
        compressed_bits=4,
        bits=8,
        block_size=size,
        axis=axis,
        block_axis=block_axis,
    )


shapes = st.none() | st.lists(st.sampled_from([-1, 0, 1, 3, 5, 32]), max_size=4).map(tuple)


@st.composite
def tensors(draw: st.DrawFn) -> TensorFact:
    """Facts as graphs tell them, also those that contradict each other."""
    shape = draw(shapes)
    axes = [None, *range(len(shape))] if shape else [None]
    dtype = draw(st.sampled_from([None, "float", "float16", "int64", "float8e4m3fn"]))
    return TensorFact(
        draw(st.sampled_from(list(TensorRole))), dtype, shape, draw(st.sampled_from(axes))
    )


@settings(max_examples=100)
@given(
    encodings=st.dictionaries(st.sampled_from(NAMES), grids()),
    known=st.dictionaries(st.sampled_from(NAMES), tensors()),
    params=st.none() | st.frozensets(st.sampled_from(NAMES)),
    version=st.sampled_from([None, "1.0.0", "2.0.0"]),
)
def test_the_checks_find_known_rules_and_never_raise(
    encodings: dict[str, Encoding],
    known: dict[str, TensorFact],
    params: frozenset[str] | None,
    version: str | None,
) -> None:
    linear = LinearFact("/m", "MatMul", (("x",), ("w",)), ("y",), bias="b")
    facts = GraphFacts(Path("model.onnx"), {"/m": "MatMul"}, known, (linear,))
    file = EncodingFile(version, encodings, params)

    def places(tensor: str | None) -> Where:
        return Where(tensor=tensor)

    found = [
        *encodings_against_graph(file, facts, places),
        *encodings_for_devices(file, places),
        *meetings_for_devices(file, facts, places),
    ]
    assert {f.rule for f in found} <= set(RULES)
