"""Inputs to run a graph with: whether given ones fit, or random but valid ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper

from lora_quant.engines.onnxruntime import Array, Arrays
from lora_quant.errors import (
    ConfigError,
    VerificationError,
    Where,
    did_you_mean,
)

# Of symbolic axes whose names speak of a sequence; what nothing tells is 1 (a batch).
SEQUENCE_LENGTH = 8
_INTEGERS = {TensorProto.INT64, TensorProto.INT32}
_MAX_ID = 1_000_000
_PAST = re.compile(r"^past(_key_values)?")
_CACHE_AXES = 4


def check_inputs(inputs: Arrays, proto: ModelProto, source: Path) -> None:
    """Raise VerificationError unless `inputs` has exactly the graph's inputs, of their types."""
    wanted = {value.name: value for value in graph_inputs(proto)}
    for name in inputs:
        if name not in wanted:
            raise VerificationError(
                f"the graph has no input {name!r}",
                where=Where(file=source, tensor=name),
                hint=did_you_mean(name, wanted),
            )
    for name, value in wanted.items():
        if name not in inputs:
            raise VerificationError(
                f"the inputs lack {name!r}", where=Where(file=source, tensor=name)
            )
        expected = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if inputs[name].dtype != expected:
            raise VerificationError(
                f"input {name!r} is {inputs[name].dtype}, expected {expected}",
                where=Where(file=source, tensor=name),
            )


@dataclass(frozen=True)
class Lengths:
    """Lengths of the axes of a sequence: `past` tokens in the cache, `tokens` that are read now."""

    tokens: int = SEQUENCE_LENGTH
    past: int = 0


def random_inputs(proto: ModelProto, seed: int, lengths: Lengths = Lengths()) -> dict[str, Array]:
    """Deterministic random inputs: token ids within the vocabulary, masks of ones.

    Floats are standard normal. Raises VerificationError for a type that cannot be guessed,
    ConfigError for a negative seed.
    """
    if seed < 0:
        raise ConfigError(f"the seed of random inputs is {seed}, expected 0 or more")
    generator = np.random.default_rng(seed)
    vocabulary = _vocabulary_sizes(proto)
    axes = _Axes(lengths, _cache_lengths(proto))
    return {
        value.name: _random(value, vocabulary.get(value.name), axes, generator)
        for value in graph_inputs(proto)
    }


def guessed_axes(proto: ModelProto) -> tuple[str, ...]:
    """Axes of inputs that `random_inputs` takes to be 1 without a sign that they may be."""
    axes = _Axes(Lengths(), _cache_lengths(proto))
    return tuple(
        f"axis {axis} ({dim.dim_param or 'unnamed'}) of input {value.name!r}"
        for value in graph_inputs(proto)
        for axis, dim in enumerate(value.type.tensor_type.shape.dim)
        if axes.length(dim) is None and "batch" not in dim.dim_param.lower()
    )


def graph_inputs(proto: ModelProto) -> list[Any]:
    """Inputs that a caller must feed: those without an initializer."""
    initialised = {tensor.name for tensor in proto.graph.initializer}
    return [value for value in proto.graph.input if value.name not in initialised]


def _random(
    value: Any,
    vocabulary: int | None,
    axes: _Axes,
    generator: np.random.Generator,
) -> Array:
    tensor = value.type.tensor_type
    told = (axes.length(dim) for dim in tensor.shape.dim)
    shape = tuple(1 if length is None else length for length in told)
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    name = value.name.lower()
    if tensor.elem_type in _INTEGERS:
        if "mask" in name:
            return np.ones(shape, dtype)
        if "position" in name:
            first = axes.lengths.past
            positions = np.arange(first, first + shape[-1], dtype=dtype)
            return np.broadcast_to(positions, shape).copy()
        if vocabulary is not None:
            return generator.integers(0, vocabulary, shape).astype(dtype)
        return np.zeros(shape, dtype)
    if tensor.elem_type == TensorProto.BOOL:
        return np.ones(shape, dtype)
    if np.issubdtype(dtype, np.floating) or tensor.elem_type == TensorProto.BFLOAT16:
        return generator.standard_normal(shape).astype(dtype)
    raise VerificationError(
        f"no random values can be made for input {value.name!r} of type {dtype}",
        where=Where(tensor=value.name),
        hint="give inputs with --inputs FILE",
    )


@dataclass(frozen=True)
class _Axes:
    """What tells the length of an axis: its value, its name, or a cache's `named` axes."""

    lengths: Lengths
    named: Mapping[str, int]

    def length(self, dim: Any) -> int | None:
        """The length of an axis, None if nothing tells it."""
        if dim.HasField("dim_value"):
            return int(dim.dim_value)
        name = dim.dim_param.lower()
        is_total = "total" in name or "+" in name
        if "past" in name and not is_total:
            return self.lengths.past
        if any(word in name for word in ("seq", "total", "length")):
            return self.lengths.tokens + (self.lengths.past if is_total else 0)
        return self.named.get(dim.dim_param)


def _cache_lengths(proto: ModelProto) -> dict[str, int]:
    """Named axes of caches, `[batch, heads, past, head]`, whose lengths the graph tells elsewhere.

    That is in the output `present*` of an input `past*`, or in a GroupQueryAttention that reads it.
    """
    outputs = {value.name: _dims(value) for value in proto.graph.output}
    shapes = outputs | {value.name: _dims(value) for value in proto.graph.value_info}
    caches = {v.name: _dims(v) for v in graph_inputs(proto) if len(_dims(v)) == _CACHE_AXES}
    lengths: dict[str, int] = {}
    for name, dims in caches.items():
        present = outputs.get(_PAST.sub("present", name), [])
        for dim, other in zip(dims, present, strict=False):
            if dim.dim_param and other.HasField("dim_value"):
                lengths.setdefault(dim.dim_param, other.dim_value)
    for node in proto.graph.node:
        if node.op_type != "GroupQueryAttention":
            continue
        heads = {a.name: a.i for a in node.attribute if a.name in ("num_heads", "kv_num_heads")}
        hidden = shapes.get(node.output[0], [])
        for name in node.input[3:5]:
            if name not in caches or len(heads) != len(("num_heads", "kv_num_heads")):
                continue
            _batch, cached, _past, head = (dim.dim_param for dim in caches[name])
            if cached:
                lengths.setdefault(cached, heads["kv_num_heads"])
            if head and hidden and hidden[-1].dim_value:
                lengths.setdefault(head, hidden[-1].dim_value // heads["num_heads"])
    return lengths


def _dims(value: Any) -> list[Any]:
    return list(value.type.tensor_type.shape.dim)


def _vocabulary_sizes(proto: ModelProto) -> dict[str, int]:
    """Rows of the table that an integer input indexes, through Gather."""
    rows = {tensor.name: tensor.dims[0] for tensor in proto.graph.initializer if tensor.dims}
    sizes: dict[str, int] = {}
    for node in proto.graph.node:
        if node.op_type == "Gather" and node.input[0] in rows:
            index = node.input[1]
            sizes[index] = min(rows[node.input[0]], sizes.get(index, _MAX_ID))
    return sizes
