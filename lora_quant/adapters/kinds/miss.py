"""MISS, and BONE as it was called before: the input is folded to r numbers, which M maps to out.

    y += M' (sum of the parts x[0:r], x[r:2r], ...)       A [j, i] = 1 where i mod r = j,  B = M'

standard: M `[r, out]`. mini: M `[r, mini_r]`, repeated to out. bat: `[out / r, r, r]`; W M + M is
added to every block W of r by r weights, which has no low rank. The file does not tell how large
the input is; the base does.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.base_modules import whole_weight
from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.frame.kind_rule import KindRule
from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.lowered import Dense, Lowered, ModuleShape, Need
from lora_quant.errors import AdapterError, UnsupportedAdapterError, Where, short

Matrix = NDArray[np.float64]

_BAT = "bat"
_MINI = "mini"


class MissRule(KindRule):
    """ΔW [:, i] = M' [:, i mod r]; for bat ΔW = W M + M by blocks."""

    kind: ClassVar[str] = "MISS"
    rank = "r; full for bat"
    block: ClassVar[str] = "miss_block"
    required = ("miss_block",)
    rank_field = ("r", 64)
    used = frozenset({"init_weights", "mini_r"})
    neutral = frozenset({"miss_dropout"})

    def check(self, config: PeftConfig) -> None:
        """Refuse variants that are not known: `init_weights` says which one it is."""
        variant = config.fields.get("init_weights")
        if isinstance(variant, str) and variant not in (_BAT, _MINI):
            raise UnsupportedAdapterError(
                f"init_weights is {short(variant)}, expected true, false, {_BAT!r} or {_MINI!r}",
                where=config.where("init_weights"),
                hint="it says how the tensors are used; correct it to what was trained",
            )

    def shape(self, headers: Headers) -> ModuleShape:
        """Rank r; in is never told, out not for mini."""
        variant = headers.config.fields.get("init_weights")
        module, dims = headers.module, headers.dims(self.block, 3 if variant == _BAT else 2)
        if variant == _BAT:
            blocks, rank, _ = dims
            headers.expect({self.block: (blocks, rank, rank)})
            headers.expect_rank(self.block, rank)
            return ModuleShape(
                module, 0, None, blocks * rank, need=Need.WEIGHT, dense=True, adds_up=False
            )
        rank, out = dims
        headers.expect_rank(self.block, rank)
        if variant != _MINI:
            return ModuleShape(module, rank, None, out, need=Need.SIZES)
        mini = headers.config.positive("mini_r", 1)
        if out != mini:
            raise headers.error(
                self.block,
                f"{self.block} has shape {list(dims)}, expected {[rank, mini]} from mini_r",
            )
        return ModuleShape(module, rank, None, None, need=Need.SIZES)

    def formula(self, module: ModuleTensors) -> Lowered | Dense:
        """A = the identity, side by side until it is as wide as the input; B = M'."""
        block = module[self.block]
        if module.shape.dense:
            return Dense(bat_update(self._weight(module, len(block[0])), block))
        sizes = module.base.sizes(module.shape.module)
        rank, columns = block.shape
        self._check_divides(module, columns, "out", sizes.out_features)
        A = np.eye(rank)[np.arange(sizes.in_features) % rank].T
        B = np.tile(block, (1, sizes.out_features // columns)).T
        return Lowered(A, B, module.s)

    def _weight(self, module: ModuleTensors, rank: int) -> Matrix:
        """The base's weight, held to consist of the blocks that the file has."""
        weight = whole_weight(module.base, module.shape.module)
        if len(weight) != module.shape.out_features:
            raise self._error(
                module, f"out is {module.shape.out_features}, expected {len(weight)} as in the base"
            )
        self._check_divides(module, rank, "in", weight.shape[1])
        return weight

    def _check_divides(self, module: ModuleTensors, part: int, axis: str, size: int) -> None:
        if size % part:
            raise self._error(
                module, f"{axis} of the base is {size}, expected a multiple of {part}"
            )

    def _error(self, module: ModuleTensors, message: str) -> AdapterError:
        tensor = module.shape.tensors[self.block]
        return AdapterError(
            message,
            where=Where(file=module.source.path, module=module.shape.module, tensor=tensor),
            hint="the adapter was trained on a base of other sizes; is this its base?",
        )


class BoneRule(MissRule):
    """MISS as PEFT called it up to 0.20."""

    kind: ClassVar[str] = "BONE"
    form = "as MISS"
    rank = "r; full for bat"
    block: ClassVar[str] = "bone_block"
    required = ("bone_block",)
    neutral = frozenset()


def bat_update(weight: Matrix, block: NDArray[np.float64]) -> Matrix:
    """`W M + M` for each block of `weight [out, in]`, M = `block [out / r, r, r]` of its rows."""
    rows, rank, _ = block.shape
    blocks = weight.reshape(rows, rank, -1, rank)
    update: Matrix = np.einsum("qapb,qbc->qapc", blocks, block) + block[:, :, None]
    return update.reshape(weight.shape)
