"""The canonical form that every adapter kind is lowered to, per module.

    y = g * (W (h * x) + b)  +  B (s * (A x))  +  c

`W` and `b` are the base's own weight and bias, which stay where they are. `g`, `h` and `c` are
absent for plain LoRA. A and B stay as trained, so that their quantization grids do not depend on
the strength; the strength is `s`. What has no low rank is a `Dense` update of W instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]


class Need(Enum):
    """What a rule has to know of the base's module to lower it, beyond the adapter's files."""

    NOTHING = "nothing"
    SIZES = "sizes"
    WEIGHT = "weight"


@dataclass(frozen=True)
class ModuleShape:
    """What is known of one adapted module from file headers alone, before any tensor is read.

    `rank` is the number of rows of A, 0 where the module has vectors only or is `dense`.
    `in_features`, `out_features` are None where the files do not tell them. `kernel` is empty for a
    linear module and holds the spatial kernel of A for a convolution; None where the files do not
    tell it: then `in_features` is the product of both, and A may be `[rank, in_features]`.
    For an embedding, `in_features` is the vocabulary.

    `scale` is the factor of s that all ranks share, as the training framework computes it (for LoRA
    lora_alpha / rank, or lora_alpha / sqrt(rank) with rsLoRA). `tensors`: parameter, such as
    `lora_A.weight`, -> name in the file, those that all modules share included. `vectors` tells
    which of g, h and c there are. `gated`: s is multiplied by a gate per token that the application
    feeds. `experts`: the ranks are weighed by a router over that many experts. `adds_up` is False
    where training took the module as it was, so that no other adapter's update can be added to it
    (rotations of W, parts that are taken away from W).
    """

    module: str
    rank: int
    in_features: int | None
    out_features: int | None
    kernel: tuple[int, ...] | None = ()
    scale: float = 1.0
    tensors: Mapping[str, str] = field(default_factory=dict, compare=False)
    groups: int = 1
    is_embedding: bool = False
    vectors: frozenset[str] = frozenset()
    need: Need = Need.NOTHING
    dense: bool = False
    gated: bool = False
    experts: int = 0
    adds_up: bool = True


@dataclass(frozen=True, eq=False)
class Lowered:
    """One module of one adapter in canonical form.

    A: `[rank, in, *kernel]` or `[rank, in * kernel]`; B: `[out, rank]`, for a grouped convolution
    `[out, rank / groups]`; s: `[rank]` (float64), not yet multiplied by a strength; h: `[in]`;
    g and c: `[out]`. A and B keep the dtype of the checkpoint where they are stored as such
    (bfloat16 as ml_dtypes.bfloat16), and are float32 or float64 where they were computed.
    router: `[experts, rank]`: the softmax of router (A x), averaged over the tokens, weighs the
    ranks; rank j belongs to expert j // (rank / experts).
    """

    A: FloatArray
    B: FloatArray
    s: NDArray[np.float64]
    g: FloatArray | None = None
    h: FloatArray | None = None
    c: FloatArray | None = None
    router: FloatArray | None = None

    @property
    def rank(self) -> int:
        """Number of rows of A."""
        return int(self.A.shape[0])


@dataclass(frozen=True, eq=False)
class Dense:
    """One module whose update is exact only as a whole: W' = W + delta, b' = b + c.

    delta: `[out, in, *kernel]`; for an embedding `[dim, vocabulary]`, as B A would be. c: `[out]`.
    """

    delta: FloatArray
    c: FloatArray | None = None
