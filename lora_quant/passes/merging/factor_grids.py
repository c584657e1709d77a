"""A given grid of A or B in the layout of our graph, or none where it tells of other values."""

from __future__ import annotations

from dataclasses import replace

from lora_quant.encodings.algebra import scaled, scatter_channels
from lora_quant.encodings.convert import TensorFacts, resolve
from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.kinds import Granularity
from lora_quant.errors import EncodingsError
from lora_quant.graph.records import Branch, TensorRecord
from lora_quant.passes.merging.block_placement import placed_blocks, resolved_blocks
from lora_quant.passes.merging.collected import UseCaseEncodings
from lora_quant.passes.merging.contributions import Contribution


def fitted(
    given: Encoding,
    branch: Branch,
    items: tuple[Contribution, ...],
    result: UseCaseEncodings,
    on_our_graph: bool,
    *,
    is_a: bool,
) -> Encoding | None:
    """The grid with the layout and the axes of our graph; None if it does not serve.

    The file's axes are those of another layout, or are not told. A graph of ours may have had fewer
    ranks, for fewer use cases. Raises EncodingsError, naming the tensor, for a grid that does not
    fit the adapters.
    """
    record = branch.a_weight if is_a else branch.b_weight
    axis = branch.channel_axes[0 if is_a else 1]
    try:
        own: Encoding | None = given
        if not (on_our_graph and _is_whole(given, record, axis)):
            if not on_our_graph and any(item.ratio is None for item in items):
                return None
            if is_a:
                own = _fit_a(given, branch, items, result.use_case)
            else:
                own = _fit_b(given, branch, items, 1.0 if on_our_graph else None)
        if own is None:
            return None
        if own.granularity is Granularity.PER_CHANNEL:
            own = replace(own, axis=None)
        return resolve(own, TensorFacts(record.shape, axis, 1 - axis))
    except EncodingsError as error:
        raise EncodingsError(
            error.message, where=result.where(record.name), hint=error.hint
        ) from error


def ranks_of(items: tuple[Contribution, ...]) -> tuple[int, ...]:
    """The ranks of the branch that adapters fill, in the order of slots and parts."""
    return tuple(rank for item in items for rank in range(item.start, item.start + item.rank))


def scaled_unless_one(given: Encoding, factor: float) -> Encoding:
    """The grid of the values times `factor`."""
    return given if factor == 1.0 else scaled(given, factor)


def _fit_a(
    given: Encoding, branch: Branch, items: tuple[Contribution, ...], use_case: str
) -> Encoding | None:
    """Move the scales of the file's ranks to the slots; per tensor there is nothing to move.

    None where the file's order of ranks is not known: several adapters on a fused projection.
    """
    if not _order_is_known(given, items):
        return None
    if given.granularity is Granularity.PER_TENSOR or given.scale is None:
        return given
    axis = branch.channel_axes[0]
    total = branch.a_weight.shape[axis]
    ranks = ranks_of(items)
    if given.block_size is not None and given.channels is None:
        given = _unfolded(given, branch, axis)
    count = given.channels or 0
    if count == total and ranks == tuple(range(len(ranks))):
        return given  # padded at the tail to the same max rank
    if count != len(ranks):
        raise EncodingsError(
            f"lora_A has {count} scales per channel; the adapters of use case {use_case!r} have "
            f"{len(ranks)} ranks here",
            hint="the encodings belong to other adapters, or their graph pads the ranks in a "
            "way that cannot be told from names alone",
        )
    return scatter_channels(given, ranks, total)


def _unfolded(given: Encoding, branch: Branch, axis: int) -> Encoding:
    """A's blocks, which 1.0.0 stores flat, by rank; the file's own number of ranks is kept."""
    size, inputs = given.block_size or 1, branch.attach.linear.in_features
    blocks = inputs // size
    if blocks == 0 or inputs % size or given.step_scale.size % blocks:
        raise EncodingsError(
            f"lora_A has {given.step_scale.size} blocks of {size}; expected a multiple of the "
            f"blocks in {inputs} inputs",
            hint="the encodings belong to another graph",
        )
    return resolved_blocks(given, branch.a_weight, axis, given.step_scale.size // blocks)


def _fit_b(
    given: Encoding, branch: Branch, items: tuple[Contribution, ...], factor: float | None
) -> Encoding | None:
    """Scale by what was folded into B, which is `factor` where it is known.

    None if that is not one number for all of B, or a module is off: then B is not the one that the
    file speaks of.
    """
    channels = branch.b_weight.shape[branch.channel_axes[1]]
    if given.channels not in (None, channels):
        raise EncodingsError(
            f"lora_B has {given.channels} scales per channel, the module has {channels} output "
            "features",
            hint="the encodings belong to another graph",
        )
    if factor is None:
        factor = _common_factor(given, branch, items)
    if factor is None:
        return None
    own = scaled_unless_one(given, factor)
    return own if given.block_size is None else placed_blocks(own, branch, items)


def _common_factor(
    given: Encoding, branch: Branch, items: tuple[Contribution, ...]
) -> float | None:
    """What B was scaled by, if it was the same for all adapters and none is switched off.

    A negative factor mirrors the values, which only a symmetric grid takes.
    """
    gain = branch.attach.linear.gain
    factors: set[float] = set()
    for item in items:
        if item.ratio is None or item.is_gained:
            return None
        factors.add(item.ratio * gain)
    if len(factors) > 1 or 0.0 in factors or (min(factors) < 0 and not given.symmetric):
        return None
    return abs(factors.pop())


def _is_whole(given: Encoding, record: TensorRecord, axis: int) -> bool:
    """Whether a grid has scales for all of our weight, of whose ranks a smaller graph has fewer."""
    if given.scale is None or given.granularity is Granularity.PER_TENSOR:
        return True
    if given.block_size is None:
        return given.channels == record.shape[axis]
    return given.step_scale.size * given.block_size == record.shape[0] * record.shape[1]


def _order_is_known(given: Encoding, items: tuple[Contribution, ...]) -> bool:
    is_per_tensor = given.granularity is Granularity.PER_TENSOR
    return is_per_tensor or len({i.slot for i in items}) == 1 or len({i.part for i in items}) == 1
