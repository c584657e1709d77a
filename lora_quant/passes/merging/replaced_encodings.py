"""Encodings of the base's parameters that a use case replaces.

    in the base's file     as the use case's file gives it, else computed from the new values with
                           the bits and the channels of the base's
    not in it              none: the parameter stays in float

A parameter that the use case leaves as it is keeps the base's encoding. So does a bias of 32 bits,
whose step follows from those of input and weight, not from its values.
"""

from __future__ import annotations

from dataclasses import replace

from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.kinds import Granularity
from lora_quant.encodings.like import grid_like
from lora_quant.errors import EncodingsError
from lora_quant.passes.compilation import Compilation
from lora_quant.passes.merging.axes import Facts, base_facts, with_axes, with_block_axes
from lora_quant.passes.merging.collected import Sources, UseCaseEncodings
from lora_quant.passes.replacements import Replacement, replaced_values

_BIAS_BITS = 32


def add_replaced(result: UseCaseEncodings, sources: Sources) -> None:
    """Add the encodings of every parameter that adapters of the use case replace.

    What the file says of the others is set apart, to be held against the base's. Raises
    EncodingsError, naming the tensor, where the base's structure cannot be taken over.
    """
    compilation = sources.compilation
    slots = compilation.having("slots").use_cases[sources.use_case]
    adapters = {slot.adapter for slot in slots}
    owners = {r.target.weight.name: r for r in compilation.replacements if r.adapter in adapters}
    for name in sorted({r.target.weight.name for r in compilation.replacements} - owners.keys()):
        if name in sources.file:
            result.unused[name] = sources.file[name]
    facts = base_facts(compilation.base) if owners else {}
    for name, owner in owners.items():
        known, given = sources.base.get(name), sources.file.get(name)
        if known is None:
            continue
        try:
            if given is not None:
                given = with_block_axes(given, owner.target.weight, facts)
                result.take(name, _with_axis_of(known, given))
            elif known.bits != _BIAS_BITS:
                result.encodings[name] = _computed(compilation, owner, known, facts)
        except EncodingsError as error:
            raise EncodingsError(
                error.message, where=result.where(name), hint=error.hint
            ) from error


def _computed(
    compilation: Compilation, owner: Replacement, known: Encoding, facts: Facts
) -> Encoding:
    structure = with_axes(known, owner.target.weight, facts)
    adapter = compilation.having("adapters")[owner.adapter]
    return grid_like(
        structure, replaced_values(compilation.base, owner.target, adapter, owner.shape)
    )


def _with_axis_of(known: Encoding, given: Encoding) -> Encoding:
    """A given grid per channel with the base's axis, where its own file does not tell it."""
    if given.granularity is not Granularity.PER_CHANNEL or given.axis is not None:
        return given
    return replace(given, axis=known.axis)
