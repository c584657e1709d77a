"""VBLORA: the factors are put together from the vectors of one bank that all modules share.

    sub-vector = sum over the top k of softmax(logits) * bank[index]        bank [N, L]

    A [r, in]: r rows of in / L sub-vectors        logits_A [r, in / L, N]
    B [out, r]: out / L blocks, transposed         logits_B [out / L, r, N]

Saved with `save_only_topk_weights`, a file has the k indices and the first k - 1 weights of each
sub-vector instead of its logits; the last weight is what is missing to 1.

Where the k-th and the next largest logit are equal, torch may take either, so that is refused.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.frame.kind_rule import KindRule
from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.lowered import Lowered, ModuleShape
from lora_quant.errors import AdapterError, UnsupportedAdapterError

_LOGITS = ("vblora_logits_A", "vblora_logits_B")
_BANK = "vblora_vector_bank"


class VbloraRule(KindRule):
    """ΔW = B A, both of vectors from the bank."""

    kind: ClassVar[str] = "VBLORA"
    rank = "r"
    optional = (
        *_LOGITS,
        *(f"{name}_topk_{part}" for name in _LOGITS for part in ("indices", "weights")),
    )
    shared = (_BANK,)
    rank_field = ("r", 4)
    used = frozenset({"num_vectors", "save_only_topk_weights", "topk", "vector_length"})
    neutral = frozenset(
        {"fan_in_fan_out", "init_logits_std", "init_vector_bank_bound", "vblora_dropout"}
    )

    def shape(self, headers: Headers) -> ModuleShape:
        """Rank and sizes from the logits or the indices; the bank from its own shape."""
        vectors, length = headers.shared_dims(_BANK, 2)
        topk = headers.config.positive("topk", 2)
        if topk > vectors:
            raise headers.error(
                next(iter(headers.names)), f"topk is {topk}, expected at most the {vectors} vectors"
            )
        (rank, tiles_in), (tiles_out, rank_B) = (
            _tiles(headers, name, vectors, topk) for name in _LOGITS
        )
        if rank != rank_B:
            raise headers.error(
                next(iter(headers.names)), f"A has rank {rank} and B {rank_B}, expected the same"
            )
        headers.expect_rank(next(iter(headers.names)), rank)
        return ModuleShape(
            headers.module, rank, tiles_in * length, tiles_out * length, scale=headers.scale
        )

    def formula(self, module: ModuleTensors) -> Lowered:
        """A = rows of sub-vectors; B = blocks of sub-vectors, each `[r, L]` transposed."""
        bank = module[_BANK]
        topk = module.config.positive("topk", 2)
        A, B = (_vectors(module, name, bank, topk) for name in _LOGITS)
        rank = module.shape.rank
        return Lowered(A.reshape(rank, -1), np.swapaxes(B, 1, 2).reshape(-1, rank), module.s)


def _tiles(headers: Headers, name: str, vectors: int, topk: int) -> tuple[int, int]:
    """The two leading axes of the logits, or of the indices in their place."""
    if headers.has(name):
        *tiles, last = headers.dims(name, 3)
        expected, parameter = vectors, name
    else:
        parameter, expected = f"{name}_topk_indices", topk
        *tiles, last = headers.index_dims(parameter, 3)
        if topk > 1:
            headers.expect({f"{name}_topk_weights": (*tiles, topk - 1)})
    if last != expected:
        raise headers.error(parameter, f"{parameter} has {last} entries each, expected {expected}")
    return tiles[0], tiles[1]


def _vectors(
    module: ModuleTensors, name: str, bank: NDArray[np.float64], topk: int
) -> NDArray[np.float64]:
    """All sub-vectors of one factor, `[..., L]`."""
    if name in module:
        logits = module[name]
        order = np.argsort(-logits, axis=-1, kind="stable")
        _expect_clear_cut(module, name, np.take_along_axis(logits, order, axis=-1), topk)
        indices = order[..., :topk]
        kept = np.take_along_axis(logits, indices, axis=-1)
        weights = np.exp(kept - kept.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
    else:
        indices = module.indices(f"{name}_topk_indices", below=len(bank))
        weights = np.ones(indices.shape)
        if topk > 1:
            weights[..., :-1] = module[f"{name}_topk_weights"]
            weights[..., -1] -= weights[..., :-1].sum(axis=-1)
            _expect_weights(module, name, weights)
    product: NDArray[np.float64] = np.einsum("...k,...kl->...l", weights, bank[indices])
    return product


def _expect_clear_cut(
    module: ModuleTensors, name: str, falling: NDArray[np.float64], topk: int
) -> None:
    """Refuse sub-vectors whose last vector could be another; `falling` are the sorted logits."""
    cut = falling[..., topk - 1 : topk + 1]
    ties = int(np.count_nonzero(cut[..., 0] == cut[..., -1])) if cut.shape[-1] == 2 else 0
    if ties:
        raise UnsupportedAdapterError(
            f"{ties} sub-vectors of {name} have equal logits at the end of their top {topk}, "
            "expected different ones: which vector PEFT takes depends on the machine",
            where=module.where,
            hint="save the adapter with save_only_topk_weights where it was trained",
        )


def _expect_weights(module: ModuleTensors, name: str, weights: NDArray[np.float64]) -> None:
    # each stored weight is rounded to half a unit of its type, which 16-bit types make 2**-9
    if weights.min() < -(2.0**-9) * weights.shape[-1]:
        raise AdapterError(
            f"{name}_topk_weights has weights whose sum is more than 1, or negative ones, "
            "expected the results of a softmax",
            where=module.where,
            hint="the checkpoint is damaged; save or download it again",
        )
