"""The scales of one encoding against the shape of its tensor.

per channel    as many scales as the axis of the output channels is long
per block      channels times blocks, where blocks of the given size fill the input axis
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.kinds import BLOCKWISE, Granularity
from lora_quant.findings import Finding
from lora_quant.validation.catalogue import encodings_of_graph as rules
from lora_quant.validation.documents.entry_places import Places

if TYPE_CHECKING:
    from lora_quant.graph.files.graph_facts import TensorFact


def shape_findings(
    name: str, encoding: Encoding, fact: TensorFact, places: Places
) -> Iterator[Finding]:
    """What does not fit the shape; nothing where the graph does not tell the shape."""
    shape = fact.shape
    if encoding.scale is None or encoding.scale.ndim == 0 or shape is None or -1 in shape:
        return
    given = None if encoding.axis is None else _counted(encoding.axis, len(shape))
    if encoding.axis is not None and given is None:
        message = f"axis {encoding.axis} is not an axis of the shape {list(shape)}"
        yield rules.AXIS.finding(message, places(name))
        return
    axis = fact.axis
    if given is not None and axis is not None and given != axis:
        yield rules.AXIS.finding(
            f"axis {given}, expected {axis}: the output channels of the shape {list(shape)}",
            places(name),
        )
        return
    axis = given if axis is None else axis
    if encoding.granularity in BLOCKWISE:
        yield from _blocks(name, encoding, shape, axis, places)
        return
    count = encoding.scale.size
    expected = None if axis is None else shape[axis]
    if count == expected or (axis is None and count in shape):
        return
    along = "any axis of" if axis is None else f"axis {axis} of"
    yield rules.CHANNELS.finding(
        f"{count} scale{'s' * (count != 1)}, which is not the length of {along} the shape "
        f"{list(shape)}",
        places(name),
    )


def _counted(axis: int, count: int) -> int | None:
    return axis % count if -count <= axis < count else None


def _blocks(
    name: str, encoding: Encoding, shape: tuple[int, ...], axis: int | None, places: Places
) -> Iterator[Finding]:
    size = encoding.block_size
    if size is None or axis is None or axis > 1 or len(shape) < 2:
        return
    if encoding.ndim not in (None, len(shape)):
        yield rules.BLOCKS.finding(
            f"scales of {encoding.ndim} axes for the shape {list(shape)}", places(name)
        )
        return
    other = 1 - axis if encoding.block_axis is None else encoding.block_axis
    channels, values = shape[axis], shape[other]
    if values % size:
        yield rules.BLOCKS.finding(
            f"blocks of {size} do not divide axis {other} of the shape {list(shape)}", places(name)
        )
        return
    found = _block_count(encoding)
    if found != channels * (values // size):
        yield rules.BLOCKS.finding(
            f"{found} blocks, expected {channels} x {values // size} of {size} values for the "
            f"shape {list(shape)}",
            places(name),
        )


def _block_count(encoding: Encoding) -> int:
    if encoding.granularity is Granularity.LPBQ and encoding.block_scale is not None:
        return encoding.block_scale.size
    return encoding.stored_scale.size
