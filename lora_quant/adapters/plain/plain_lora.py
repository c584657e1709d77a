"""What plain LoRA can hold: A and B with a scale of 1, and a bias.

    y = W x + B' (A x) + c        B' = B diag(s), in float64, rounded once to float32

An update of a grouped convolution that is given as a matrix of one group, A [r, in / g, *kernel],
gets the ranks of every group: A' has A on its diagonal, B stays, since PEFT's B is grouped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.base_modules import BaseModules
from lora_quant.adapters.files.finite import all_finite
from lora_quant.adapters.lowered import FloatArray, Lowered, ModuleShape
from lora_quant.errors import NOWHERE, AdapterError, UnsupportedAdapterError, Where


@dataclass(frozen=True)
class PlainShape:
    """One module of a plain LoRA: A `[rank, in, *kernel]`, B `[out, rank / groups]`.

    Of an embedding, `in_features` is the vocabulary.
    """

    rank: int
    in_features: int
    out_features: int
    kernel: tuple[int, ...] = ()
    groups: int = 1
    is_embedding: bool = False


@dataclass(frozen=True, eq=False)
class PlainPair:
    """The values of one module, float32; c is `[out]` or None."""

    A: NDArray[np.float32]
    B: NDArray[np.float32]
    c: NDArray[np.float32] | None


def plain_shape(
    shape: ModuleShape, rank: int, base: BaseModules | None, where: Where = NOWHERE
) -> PlainShape:
    """Sizes of one module, from the base where it is there; a module without ranks gets one.

    Without a base, a module whose files do not tell a kernel is taken as linear. Raises
    UnsupportedAdapterError, at the file and adapter of `where`, if they do not tell its sizes.
    """
    if base is not None:
        sizes = base.sizes(shape.module)
        is_repeated = shape.groups == 1 and sizes.groups > 1
        return PlainShape(
            max(rank, 1) * (sizes.groups if is_repeated else 1),
            sizes.in_features,
            sizes.out_features,
            sizes.kernel,
            sizes.groups,
            sizes.is_embedding,
        )
    if shape.in_features is None or shape.out_features is None:
        raise UnsupportedAdapterError(
            "the adapter's files do not tell the size of this module, which A and B need",
            where=replace(where, module=shape.module),
            hint="name the base model with --base",
        )
    return PlainShape(
        max(rank, 1),
        shape.in_features,
        shape.out_features,
        shape.kernel or (),
        shape.groups,
        shape.is_embedding,
    )


def plain_pair(lowered: Lowered, shape: PlainShape, where: Where) -> PlainPair:
    """The values of one module, without g and h; AdapterError if float32 cannot hold them."""
    c = None if lowered.c is None else lowered.c.astype(np.float64)
    A: FloatArray
    if not lowered.rank:
        A = np.zeros((shape.rank, shape.in_features, *shape.kernel))
        B = np.zeros((shape.out_features, shape.rank // shape.groups))
        return _rounded(A, B, c, where)
    if lowered.rank == shape.rank:
        A = lowered.A.reshape(shape.rank, shape.in_features, *shape.kernel)
        per_group = lowered.s.reshape(shape.groups, -1)
    else:
        A = _repeated(lowered.A, shape)
        per_group = np.tile(lowered.s, (shape.groups, 1))
    s = per_group.repeat(shape.out_features // shape.groups, axis=0)
    return _rounded(A, lowered.B.astype(np.float64) * s, c, where)


def _repeated(A: FloatArray, shape: PlainShape) -> FloatArray:
    rank, inputs = shape.rank // shape.groups, shape.in_features // shape.groups
    spread: FloatArray = np.zeros((shape.rank, shape.in_features, *shape.kernel), A.dtype)
    for group in range(shape.groups):
        rows = slice(group * rank, (group + 1) * rank)
        columns = slice(group * inputs, (group + 1) * inputs)
        spread[rows, columns] = A.reshape(rank, inputs, *shape.kernel)
    return spread


def _rounded(
    A: FloatArray, B: NDArray[np.float64], c: NDArray[np.float64] | None, where: Where
) -> PlainPair:
    # what float32 cannot hold becomes infinite, and is refused by name
    with np.errstate(over="ignore"):
        pair = PlainPair(
            A.astype(np.float32),
            B.astype(np.float32),
            None if c is None else c.astype(np.float32),
        )
    for name, values in (("A", pair.A), ("B with its scale", pair.B), ("the bias", pair.c)):
        if values is not None and not all_finite(np.ascontiguousarray(values)):
            raise AdapterError(
                f"{name} does not fit float32",
                where=where,
                hint="the training diverged; save the adapter from a good step",
            )
    return pair
