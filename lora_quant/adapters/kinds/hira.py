"""HIRA: the weight is multiplied, entry by entry, by a matrix of low rank.

    ΔW = W ⊙ (B A)        A [r, in, *kernel], B [out, r, 1...]

An embedding has A `[r, vocabulary]` and B `[dim, r]`, for W as `[dim, vocabulary]`.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from lora_quant.adapters.frame.kind_rule import KindRule
from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.lowered import Dense, ModuleShape, Need
from lora_quant.errors import AdapterError

_FACTORS = ("hira_A", "hira_B")
_OF_EMBEDDING = ("hira_embedding_A", "hira_embedding_B")


class HiraRule(KindRule):
    """ΔW = W ⊙ (B A)."""

    kind: ClassVar[str] = "HIRA"
    rank = "full"
    optional = (*_FACTORS, *_OF_EMBEDDING)
    rank_field = ("r", 32)
    patterns = True
    neutral = frozenset({"fan_in_fan_out", "hira_dropout", "init_weights"})

    def shape(self, headers: Headers) -> ModuleShape:
        """Sizes and kernel from the factors, which also tell an embedding."""
        is_embedding = any(headers.has(name) for name in _OF_EMBEDDING)
        name_A, name_B = _OF_EMBEDDING if is_embedding else _FACTORS
        dims = headers.dims(name_A)
        if len(dims) < 2:
            raise headers.error(
                name_A, f"{name_A} has shape {list(dims)}, expected [rank, in, kernel...]"
            )
        rank, inputs, *kernel = dims
        out = headers.dims(name_B)[0]
        headers.expect({name_B: (out, rank, *(1 for _ in kernel))})
        # PEFT 0.21 gives a new module r, whatever rank_pattern says; nothing is scaled by it
        if rank != headers.config.positive("r", 32):
            headers.expect_rank(name_A, rank)
        return ModuleShape(
            headers.module,
            0,
            inputs,
            out,
            tuple(kernel),
            headers.scale,
            is_embedding=is_embedding,
            need=Need.WEIGHT,
            dense=True,
        )

    def formula(self, module: ModuleTensors) -> Dense:
        """delta = W ⊙ (B A), tile by tile."""
        shape = module.shape
        name_A, name_B = _OF_EMBEDDING if shape.is_embedding else _FACTORS
        A, B = module[name_A], module[name_B]
        B = B.reshape(len(B), -1)
        sizes = module.base.sizes(shape.module)
        got = (sizes.out_features, sizes.in_features // sizes.groups, *sizes.kernel)
        if got != (len(B), *A.shape[1:]):
            raise AdapterError(
                f"the base's weight is {list(got)}, expected {[len(B), *A.shape[1:]]} from the "
                "adapter's tensors",
                where=module.where,
                hint="the adapter was trained on another model; check the base",
            )
        delta = np.empty(got)
        for tile in module.base.tiles(shape.module):
            factor = np.einsum("or,ri...->oi...", B[tile.rows], A[:, tile.columns])
            delta[tile.rows, tile.columns] = tile.values.astype(np.float64) * factor
        return Dense(delta)
