"""The inputs of the base graph that a soft prompt feeds, found by name and held against its shape.

prefix_embeds [n, dim]                 inputs_embeds [batch, tokens, dim]
past_key_values [2 L, heads, n, hd]    past_key_values.l.key, .value [batch, heads, past, hd]
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lora_quant.adapters.adapter import Adapter
from lora_quant.adapters.description import PromptShape
from lora_quant.errors import GraphError, Where, did_you_mean, some
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.base.inputs import graph_inputs
from lora_quant.graph.records import TensorRecord

_FLOATS = frozenset({"float32", "float16", "bfloat16"})
_EMBEDS = "inputs_embeds"
_PAST = re.compile(
    r"past_key_values?\.(?P<layer>\d+)\.(?P<part>key|value)|"
    r"past_(?P<part2>key|value)_(?P<layer2>\d+)"
)


@dataclass(frozen=True)
class PromptInputs:
    """`names`: the one input, or keys and values by layer: key of 0, value of 0, key of 1, ..."""

    shape: PromptShape
    names: tuple[str, ...]


def find_prompt_inputs(base: BaseGraph, adapter: Adapter) -> PromptInputs:
    """Where the soft prompt of `adapter` goes; GraphError if the graph has no such place."""
    shape = adapter.description.prompt
    if shape is None:
        raise TypeError(f"adapter {adapter.name!r} is no soft prompt")
    inputs = graph_inputs(base)
    where = Where(file=base.path, adapter=adapter.name)
    if shape.form == "prefix_embeds":
        return PromptInputs(shape, (_embeds(inputs, shape, where),))
    return PromptInputs(shape, _past(inputs, shape, where))


def _embeds(inputs: Sequence[TensorRecord], shape: PromptShape, where: Where) -> str:
    found = next((record for record in inputs if record.name == _EMBEDS), None)
    if found is None:
        raise GraphError(
            f"the adapter brings embeddings of {shape.shape[0]} virtual tokens, but the graph has "
            f"no input {_EMBEDS!r}: its inputs are {some([record.name for record in inputs])}",
            where=where,
            hint="export the base with inputs_embeds in the place of input_ids",
        )
    _check(found, {2: shape.shape[1]}, 3, "[batch, tokens, dim]", where)
    return found.name


def _past(inputs: Sequence[TensorRecord], shape: PromptShape, where: Where) -> tuple[str, ...]:
    slots: dict[int, TensorRecord] = {}
    for record in inputs:
        match = _PAST.fullmatch(record.name)
        if match is not None:
            layer = int(match["layer"] or match["layer2"])
            part = match["part"] or match["part2"]
            slots[2 * layer + (part == "value")] = record
    count = shape.shape[0]
    if sorted(slots) != list(range(count)):
        raise GraphError(
            f"the adapter brings keys and values for {count // 2} layers, but the graph has "
            f"{len(slots)} inputs for them, expected {count}",
            where=where,
            hint="export the base with a key-value cache as inputs past_key_values.N.key and "
            "past_key_values.N.value; "
            + did_you_mean("past_key_values.0.key", [record.name for record in inputs]),
        )
    for record in slots.values():
        expected = {1: shape.shape[1], 3: shape.shape[3]}
        _check(record, expected, 4, "[batch, heads, past, head dim]", where)
        if record.shape and record.shape[1] == -1 and record.shape[2] == shape.shape[1]:
            raise GraphError(
                f"the input {record.name!r} is {list(record.shape)}, with the {shape.shape[1]} "
                "heads at axis 2; expected [batch, heads, past, head dim]",
                where=Where(file=where.file, adapter=where.adapter, tensor=record.name),
                hint="export the base with the heads before the tokens in its cache",
            )
    return tuple(slots[place].name for place in range(count))


def _check(
    record: TensorRecord, sizes: dict[int, int], axes: int, layout: str, where: Where
) -> None:
    """Hold an input against what the prompt needs, as far as the graph tells."""
    is_float = record.dtype in _FLOATS
    known = not record.shape or len(record.shape) == axes
    if (
        is_float
        and known
        and all(
            not record.shape or record.shape[axis] in (-1, size) for axis, size in sizes.items()
        )
    ):
        return
    expected = ", ".join(f"{size} at axis {axis}" for axis, size in sizes.items())
    raise GraphError(
        f"the input {record.name!r} is {record.dtype} {list(record.shape)}, expected floats "
        f"{layout} with {expected}, as the adapter's soft prompt has",
        where=Where(file=where.file, adapter=where.adapter, tensor=record.name),
        hint="the adapter was trained on another base model",
    )
