"""OFT: the inputs of a module are rotated in blocks before the weight sees them.

    W' = W blockdiag(R_1, ..., R_n)'        an embedding: table' = table blockdiag(R)

Each R comes from a skew-symmetric Q, of which the file has the upper triangle `[b (b - 1) / 2]`:

    exact             R = (I - Q) (I + Q)^-1
    Cayley-Neumann    R = I + 2 Q + 2 Q^2 + ... + Q^k, cut off as PEFT cuts it

`coft` shortens a Q whose norm is beyond eps / sqrt(blocks); `block_share` has one R for all blocks.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.base_modules import whole_weight
from lora_quant.adapters.description import Description
from lora_quant.adapters.files.checkpoint import Checkpoint
from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.frame.kind_rule import KindRule
from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.frame.routing import route_keys
from lora_quant.adapters.lowered import Dense, ModuleShape, Need
from lora_quant.adapters.maths.weight_products import expect_weight
from lora_quant.errors import AdapterError, UnsupportedAdapterError, Where

Blocks = NDArray[np.float64]

_LINEAR, _EMBEDDING = "oft_R.weight", "oft_embedding_R.weight"
_OLD = ("oft_r", "oft_s")
_SERIES_SINCE = (0, 18)
_MOST_TERMS = 100


class OftRule(KindRule):
    """ΔW = W (blockdiag(R)' - I)."""

    kind: ClassVar[str] = "OFT"
    adds_up = False
    rank = "full"
    optional = (_LINEAR, _EMBEDDING)
    used = frozenset(
        {"block_share", "coft", "eps", "num_cayley_neumann_terms", "use_cayley_neumann"}
    )
    # blocks and their size are in the file, after PEFT fitted them to the weight
    neutral = frozenset({"fan_in_fan_out", "init_weights", "module_dropout", "oft_block_size", "r"})

    def describe(self, checkpoint: Checkpoint) -> Description:
        """As for every kind; files of PEFT before 0.16 have another form of rotation."""
        for key in route_keys(checkpoint.tensors.names, _OLD):
            if key.suffix in _OLD:
                raise UnsupportedAdapterError(
                    f"the tensor {key.suffix} is of an OFT from before PEFT 0.16, which rotates "
                    "in another way and cannot be loaded by later releases",
                    where=Where(file=checkpoint.tensors.path, module=key.module, tensor=key.key),
                    hint="merge it into the base with PEFT 0.15, or train it again",
                )
        return super().describe(checkpoint)

    def check(self, config: PeftConfig) -> None:
        """Refuse a series from before PEFT 0.18, which had another last term, or without an end."""
        if not config.flag("use_cayley_neumann", True):
            return
        terms = config.whole("num_cayley_neumann_terms", 5)
        if not 1 <= terms <= _MOST_TERMS:
            raise AdapterError(
                f"num_cayley_neumann_terms is {terms}, expected 1 to {_MOST_TERMS}",
                where=config.where("num_cayley_neumann_terms"),
                hint="set the number that the adapter was trained with",
            )
        version = config.names("peft_version")
        if not isinstance(version, str) or _release(version) < _SERIES_SINCE:
            told = "absent" if version is None else repr(version)
            raise UnsupportedAdapterError(
                f"peft_version is {told}: before 0.18, PEFT cut the Cayley-Neumann series off in "
                "another way, so this adapter was trained for other rotations",
                where=config.where("peft_version"),
                hint="merge it into the base with the PEFT that trained it, or train it again",
            )

    def shape(self, headers: Headers) -> ModuleShape:
        """Blocks and their size; the product is in, or for an embedding its dim."""
        name = _EMBEDDING if headers.has(_EMBEDDING) else _LINEAR
        blocks, elements = headers.dims(name, 2)
        size = block_size(elements)
        if size is None:
            raise headers.error(
                name,
                f"{name} has {elements} values a block, expected b (b - 1) / 2 for a block size b",
            )
        is_shared = headers.config.flag("block_share")
        if is_shared and blocks != 1:
            raise headers.error(
                name,
                f"{name} has {blocks} blocks, expected 1 with block_share in the configuration",
            )
        rotated = None if is_shared else blocks * size
        is_embedding = name == _EMBEDDING
        return ModuleShape(
            headers.module,
            0,
            None if is_embedding else rotated,
            rotated if is_embedding else None,
            () if is_embedding else None,
            headers.scale,
            is_embedding=is_embedding,
            need=Need.WEIGHT,
            dense=True,
        )

    def formula(self, module: ModuleTensors) -> Dense:
        """delta = W blockdiag(R)' - W; for an embedding blockdiag(R)' W - W, W being `[dim, V]`."""
        name, shape = module.shape.module, module.shape
        parameter = _EMBEDDING if shape.is_embedding else _LINEAR
        R = rotations(module[parameter], module.config)
        expect_weight(
            module.base,
            name,
            module.source.path,
            out=shape.out_features,
            columns=shape.in_features,
        )
        W = whole_weight(module.base, name)
        if shape.is_embedding:
            self._expect_divides(module, len(W), R.shape[1])
            return Dense(rotate_columns(W.T, R).T - W)
        if W[0, 0].size > 1:
            raise UnsupportedAdapterError(
                f"the module is a convolution with a kernel of {list(W.shape[2:])}: there PEFT "
                "adds up overlapping patches, and computes something else than its own merged "
                "weight does",
                where=module.where,
                hint="leave it out of target_modules; kernels of one point are exact",
            )
        flat = W.reshape(len(W), -1)
        self._expect_divides(module, flat.shape[1], R.shape[1])
        return Dense((rotate_columns(flat, np.swapaxes(R, 1, 2)) - flat).reshape(W.shape))

    @staticmethod
    def _expect_divides(module: ModuleTensors, rotated: int, size: int) -> None:
        if rotated % size:
            raise AdapterError(
                f"{rotated} inputs of the base's module are rotated in blocks of {size}, expected "
                "a multiple of that",
                where=module.where,
                hint="the adapter was trained on another model; check the base",
            )


def block_size(elements: int) -> int | None:
    """b of `elements` = b (b - 1) / 2; None if there is none."""
    size = (1 + math.isqrt(1 + 8 * elements)) // 2
    return size if size * (size - 1) // 2 == elements else None


def rotate_columns(matrix: Blocks, blocks: Blocks) -> Blocks:
    """matrix blockdiag(blocks): `[rows, n b]`, `[n, b, b]` -> `[rows, n b]`; 1 block is for all."""
    size = blocks.shape[1]
    parts = matrix.reshape(len(matrix), -1, size)
    rotated: Blocks = np.einsum(
        "pnb,nbc->pnc", parts, np.broadcast_to(blocks, (parts.shape[1], size, size))
    )
    return rotated.reshape(matrix.shape)


def rotations(triangles: NDArray[np.float64], config: PeftConfig) -> Blocks:
    """R `[n, b, b]` of the upper triangles `[n, b (b - 1) / 2]`, row by row."""
    size = block_size(triangles.shape[1])
    rows, columns = np.triu_indices(size or 0, 1)
    Q = np.zeros((len(triangles), size or 0, size or 0))
    Q[:, rows, columns] = triangles
    Q -= np.swapaxes(Q, 1, 2)
    if config.flag("coft"):
        limit = config.number("eps", 6e-5) / math.sqrt(len(Q))
        norms = np.linalg.norm(Q, axis=(1, 2), keepdims=True)
        Q = np.where(norms > limit, limit / np.where(norms > 0, norms, 1.0), 1.0) * Q
    if config.flag("use_cayley_neumann", True):
        return neumann_series(Q, config.whole("num_cayley_neumann_terms", 5))
    return cayley(Q)


def cayley(Q: Blocks) -> Blocks:
    """(I - Q) (I + Q)^-1 of each skew-symmetric block; I + Q always has an inverse."""
    identity = np.eye(Q.shape[1])
    # the two factors commute, so that the inverse may stand on the left
    result = np.linalg.solve(identity + Q, np.broadcast_to(identity, Q.shape) - Q)
    return result.astype(np.float64, copy=False)


def neumann_series(Q: Blocks, terms: int) -> Blocks:
    """I + 2 Q + 2 Q^2 + ... + Q^k with k = terms - 1, as PEFT 0.18 and later count.

    The last power has the factor 1, from k = 3 on. 3 terms are those of 4, 2 are I + 2 Q, 1 is I.
    """
    R = np.broadcast_to(np.eye(Q.shape[1]), Q.shape).copy()
    last = max(terms - 1, 3) if terms > 2 else terms - 1
    power = R
    for k in range(1, last + 1):
        power = power @ Q
        R = R + (1.0 if k == last >= 3 else 2.0) * power
    return R


def _release(version: str) -> tuple[int, ...]:
    """The first two numbers of a version; (0, 0) if it does not start with two."""
    parts = version.split(".")[:2]
    numbers = [int(part) for part in parts if part.isdecimal()]
    return tuple(numbers) if len(numbers) == 2 else (0, 0)
