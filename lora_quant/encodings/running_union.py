"""The union of many grids of one tensor that are met one at a time.

Per element, two of them decide the union: the one that reaches lowest and the one that reaches
highest (the wider one at a tie). Only these are kept, so memory does not grow with the number of
grids, and their order does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lora_quant.encodings.algebra import common_structure, scatter_channels
from lora_quant.encodings.encoding import Encoding
from lora_quant.encodings.kinds import Granularity, NumberKind
from lora_quant.encodings.union import union
from lora_quant.errors import EncodingsError


class RunningUnion:
    """Collects grids with `add`; `result` is what `union` of all of them would be."""

    def __init__(self) -> None:
        self._first: Encoding | None = None
        self._lowest: Encoding | None = None
        self._highest: Encoding | None = None
        self._owned: NDArray[np.bool_] | None = None
        self._apart = False
        self.differs = False

    @property
    def first(self) -> Encoding:
        """The grid that was added first."""
        if self._first is None:
            raise EncodingsError("there are no encodings to combine")
        return self._first

    def add(self, encoding: Encoding, channels: Sequence[int] | None = None) -> None:
        """Take one more grid; `channels` are those that count, the others hold filler.

        `differs` tells afterwards whether two grids ever differed in a channel that both count.
        Raises EncodingsError if the structures or the numbers of channels differ.
        """
        mask = _mask(encoding, channels)
        if self._lowest is None or self._highest is None:
            self._first = self._lowest = self._highest = encoding
            self._owned = mask
            return
        common_structure([self._lowest, encoding])
        if encoding.kind is NumberKind.FLOAT:
            return
        if encoding.stored_scale.shape != self._lowest.stored_scale.shape:
            raise EncodingsError(
                f"the encodings have different numbers of scales: "
                f"{list(self._lowest.stored_scale.shape)} and {list(encoding.stored_scale.shape)}"
            )
        if encoding.granularity is Granularity.LPBQ:
            self.differs = self._apart = self._apart or not self._lowest.same_grid(encoding)
            return
        self._differ(encoding, mask)
        self._lowest = _extreme(self._lowest, encoding, self._owned, mask, sign=-1)
        self._highest = _extreme(self._highest, encoding, self._owned, mask, sign=1)
        if self._owned is not None and mask is not None:
            self._owned = self._owned | mask

    def result(self) -> Encoding:
        """The union; channels that never counted get the largest scale of the others.

        Raises EncodingsError where `union` has none: different LPBQ or half-step grids.
        """
        if self._lowest is None or self._highest is None:
            raise EncodingsError("there are no encodings to combine")
        if self._apart:
            raise EncodingsError(
                "different LPBQ grids have no union: a compressed scale cannot cover them exactly",
                hint="calibrate one encoding for all use cases, or use --mode adapter_only",
            )
        covering = union([self._lowest, self._highest])
        if self._owned is None or self._owned.all() or not self._owned.any():
            return covering
        positions = [int(i) for i in np.flatnonzero(self._owned)]
        owned = replace(
            covering,
            scale=covering.stored_scale[positions],
            offset=covering.stored_offset[positions],
            block_scale=None if covering.block_scale is None else covering.block_scale[positions],
        )
        return scatter_channels(owned, positions, self._owned.size)

    def _differ(self, encoding: Encoding, mask: NDArray[np.bool_] | None) -> None:
        for kept in (self._lowest, self._highest):
            if kept is None:
                continue
            different = (kept.stored_scale != encoding.stored_scale) | (
                kept.stored_offset != encoding.stored_offset
            )
            if mask is not None and self._owned is not None:
                different = different[mask & self._owned]
            self.differs = self.differs or bool(different.any())


def _mask(encoding: Encoding, channels: Sequence[int] | None) -> NDArray[np.bool_] | None:
    count = encoding.channels
    if count is None:
        return None
    mask = np.zeros(count, np.bool_)
    mask[slice(None) if channels is None else list(channels)] = True
    return mask


def _extreme(
    kept: Encoding,
    new: Encoding,
    owned: NDArray[np.bool_] | None,
    mask: NDArray[np.bool_] | None,
    *,
    sign: int,
) -> Encoding:
    """Per element, whichever reaches further on one side, and on the other side at a tie."""
    mine = (kept.minimum, kept.maximum)[:: 1 if sign < 0 else -1]
    theirs = (new.minimum, new.maximum)[:: 1 if sign < 0 else -1]
    further = (theirs[0] - mine[0]) * sign > 0
    tie = (theirs[0] == mine[0]) & ((theirs[1] - mine[1]) * -sign > 0)
    take = further | tie
    if owned is not None and mask is not None:
        shape = (-1,) + (1,) * (take.ndim - 1)
        take = (take | ~owned.reshape(shape)) & mask.reshape(shape)
    return replace(
        kept,
        scale=np.where(take, new.stored_scale, kept.stored_scale),
        offset=np.where(take, new.stored_offset, kept.stored_offset),
    )
