"""Which axis of a weight a grid divides, where its file does not tell (0.6.1 and 1.0.0).

linear weights, vectors    as their operators read them
any other weight           the only axis that is as long as the grid, such as that of a table
"""

from __future__ import annotations

from collections.abc import Mapping

from lora_quant.encodings.convert import TensorFacts, resolve
from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.kinds import BLOCKWISE, Granularity
from lora_quant.errors import EncodingsError, Where
from lora_quant.graph.base.base_graph import BaseGraph
from lora_quant.graph.records import TensorRecord
from lora_quant.graph.values.weight_layouts import weight_layouts

Facts = Mapping[str, TensorFacts]


def base_facts(base: BaseGraph) -> dict[str, TensorFacts]:
    """Shapes and axes of the base's weights, by name, as far as operators tell them."""
    return {
        layout.name: TensorFacts(layout.shape, layout.channel_axis, layout.block_axis)
        for layout in weight_layouts(base)
    }


def facts_by_size(base: BaseGraph, encodings: Mapping[str, Encoding]) -> dict[str, TensorFacts]:
    """Those of other weights that have a grid per channel, where one axis alone fits it."""
    found: dict[str, TensorFacts] = {}
    for name, known in encodings.items():
        stored = base.index.initializers.get(name)
        if stored is not None and known.axis is None:
            facts = _by_size(known, tuple(stored.dims))
            if facts is not None:
                found[name] = facts
    return found


def resolved(given: Encoding, facts: TensorFacts, where: Where) -> Encoding:
    """A given grid with the axes of the weight that it is for; errors name the tensor."""
    try:
        return resolve(given, facts)
    except EncodingsError as error:
        raise EncodingsError(error.message, where=where, hint=error.hint) from error


def with_axes(known: Encoding, record: TensorRecord, facts: Facts) -> Encoding:
    """The grid with its axes: as its file tells them, as operators do, or as sizes do.

    Raises EncodingsError where nothing tells them.
    """
    if known.granularity is Granularity.PER_TENSOR or known.axis is not None:
        return known
    own = facts.get(record.name) or _by_size(known, record.shape)
    if own is None:
        raise EncodingsError(
            f"which axis of {list(record.shape)} the base's encoding divides is not known",
            hint="give the encoding of the replaced parameter in the file of the use case, or the "
            "base's encodings in version 2.0.0, which tells the axis",
        )
    return resolve(known, own)


def with_block_axes(known: Encoding, record: TensorRecord, facts: Facts) -> Encoding:
    """A blockwise grid with its blocks by channel, which some files store flat; others as it is."""
    return with_axes(known, record, facts) if known.granularity in BLOCKWISE else known


def _by_size(known: Encoding, shape: tuple[int, ...]) -> TensorFacts | None:
    axes = [axis for axis, size in enumerate(shape) if size == known.channels]
    if len(axes) != 1 or known.granularity is not Granularity.PER_CHANNEL:
        return None
    return TensorFacts(shape, axes[0])
