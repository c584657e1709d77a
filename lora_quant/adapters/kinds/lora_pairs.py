"""A and B of one module: found by name, checked by shape, read as stored.

linear       A [r, in]             B [out, r]
convolution  A [r, in, *kernel]    B [out, r / groups, 1, ...]
embedding    A [r, vocabulary]     B [dim, r]
BD-LoRA, QA-LoRA: packed, see `lora_blocks`
"""

from __future__ import annotations

import numpy as np

from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.kinds.lora_blocks import (
    Packing,
    block_diagonal,
    packing_of,
    unpooled,
)
from lora_quant.adapters.lowered import FloatArray, Lowered, ModuleShape
from lora_quant.errors import UnsupportedAdapterError, Where

LINEAR = ("lora_A.weight", "lora_B.weight")
EMBEDDING = ("lora_embedding_A", "lora_embedding_B")
PAIRS = (LINEAR, EMBEDDING)
_MAX_SPATIAL = 2


def pair_shape(headers: Headers) -> ModuleShape:
    """Rank and sizes of one module from the headers of A and B.

    Raises AdapterError for a lone A or B, for shapes that do not fit each other and for a rank
    that the configuration contradicts; UnsupportedAdapterError for convolutions over three axes.
    """
    a, b = _names(headers)
    rank, inputs, *kernel = _dims(headers, a)
    out, columns, *ones = _dims(headers, b)
    packing = packing_of(headers.config, headers.module)
    if len(kernel) > _MAX_SPATIAL:
        raise UnsupportedAdapterError(
            f"the module is a convolution over {len(kernel)} axes, expected at most {_MAX_SPATIAL}",
            where=_where(headers, a),
            hint="leave it out of target_modules",
        )
    if len(ones) != len(kernel) or any(size != 1 for size in ones):
        raise headers.error(
            b,
            f"B has shape {[out, columns, *ones]} beside A of shape {[rank, inputs, *kernel]}, "
            f"expected {[out, rank] + [1] * len(kernel)}",
            hint="A and B are not of one module; save the adapter again",
        )
    if packing.is_packed and (kernel or a not in LINEAR):
        raise UnsupportedAdapterError(
            f"the module is a convolution or an embedding, and {packing.field} packs linear "
            "modules only",
            where=_where(headers, a),
            hint="leave it out of target_modules",
        )
    columns *= packing.b_blocks
    groups = rank // columns if kernel and rank % columns == 0 else 1
    if columns * groups != rank:
        expected = rank // packing.b_blocks
        raise headers.error(
            b,
            f"B has {columns // packing.b_blocks} columns, expected {expected} as A has rows",
            hint="A and B are not of one training; save the adapter again",
        )
    headers.expect_rank(a, rank)
    _check_blocks(headers, packing, rank, out)
    if out % groups:
        raise headers.error(b, f"B has {out} rows, expected a multiple of its {groups} groups")
    inputs *= packing.a_blocks * packing.pooled
    return ModuleShape(
        headers.module,
        rank,
        inputs,
        out,
        tuple(kernel),
        headers.scale * packing.gain(inputs),
        groups=groups,
        is_embedding=a in EMBEDDING,
        gated=not headers.config.is_neutral("alora_invocation_tokens"),
    )


def stored_pair(module: ModuleTensors) -> Lowered:
    """A and B in the dtype of the file; blocks are laid out and pooled inputs repeated."""
    a, b = next(pair for pair in PAIRS if pair[0] in module)
    A, B = module.stored(a), module.stored(b)
    packing = packing_of(module.config, module.shape.module)
    if packing.a_blocks > 1:
        A = block_diagonal(A, packing.a_blocks)
    if packing.b_blocks > 1:
        B = block_diagonal(B, packing.b_blocks)
    if packing.pooled > 1:
        A = unpooled(A, packing.pooled)
    return Lowered(A, B.reshape(B.shape[:2]), np.full(len(A), module.shape.scale))


def appended(lowered: Lowered, A: FloatArray, B: FloatArray, s: float) -> Lowered:
    """More ranks `A [k, in]`, `B [out, k]` with one scale, in float64."""
    return Lowered(
        np.concatenate([lowered.A.astype(np.float64), A]),
        np.concatenate([lowered.B.astype(np.float64), B], axis=1),
        np.concatenate([lowered.s, np.full(len(A), s)]),
        g=lowered.g,
        h=lowered.h,
        c=lowered.c,
    )


def _names(headers: Headers) -> tuple[str, str]:
    present = next(iter(headers.names))
    pair = next((p for p in PAIRS if headers.has(p[0]) or headers.has(p[1])), LINEAR)
    for name in pair:
        if not headers.has(name):
            other = next((other for other in pair if headers.has(other)), present)
            raise headers.error(
                other,
                f"the module has {other} but no {name}",
                hint="the checkpoint is incomplete; save or download it again",
            )
    return pair


def _dims(headers: Headers, parameter: str) -> tuple[int, ...]:
    dims = headers.dims(parameter)
    if len(dims) < 2 or (parameter in EMBEDDING and len(dims) > 2):
        expected = "two axes" if parameter in EMBEDDING else "two or more axes"
        raise headers.error(
            parameter,
            f"the tensor has shape {list(dims)}, expected {expected}",
            hint="a checkpoint saved from sharded weights has such tensors; gather them first",
        )
    return dims


def _check_blocks(headers: Headers, packing: Packing, rank: int, out: int) -> None:
    for blocks, size, what in (
        (packing.a_blocks, rank, "A has {} rows"),
        (packing.b_blocks, rank, "A has {} rows"),
        (packing.b_blocks, out, "B has {} rows"),
    ):
        if size % blocks:
            raise headers.error(
                LINEAR[0],
                f"{what.format(size)}, expected a multiple of the {blocks} blocks of "
                f"{packing.field}",
                hint=f"correct nblocks of {packing.field}",
            )


def _where(headers: Headers, parameter: str) -> Where:
    return Where(
        file=headers.source.path, module=headers.module, tensor=headers.names.get(parameter)
    )
