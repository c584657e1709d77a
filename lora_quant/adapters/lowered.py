"""The canonical form that every adapter kind is lowered to, per module.

    y = g * (W (h * x))  +  B (s * (A x))  +  c

`g`, `h` and `c` are absent for plain LoRA. A and B stay as trained, so that their quantization
grids do not depend on the strength; the strength is `s`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]


@dataclass(frozen=True)
class ModuleShape:
    """What is known of one adapted module from file headers alone, before any tensor is read.

    `kernel` is empty for a linear module and holds the spatial kernel of A for a convolution.
    `scale` is the factor s that all ranks of the module share, as the training framework computes
    it (lora_alpha / rank, or lora_alpha / sqrt(rank) for rsLoRA). `tensors` names the module's
    tensors in the file, in the order in which its rule reads them.
    """

    module: str
    rank: int
    in_features: int
    out_features: int
    kernel: tuple[int, ...] = ()
    scale: float = 1.0
    tensors: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True, eq=False)
class Lowered:
    """One module of one adapter in canonical form.

    A: `[rank, in, *kernel]`, B: `[out, rank]`, s: `[rank]` (float64); h: `[in]`, g, c: `[out]`.
    A and B keep the dtype of the checkpoint (bfloat16 as ml_dtypes.bfloat16).
    """

    A: FloatArray
    B: FloatArray
    s: NDArray[np.float64]
    g: FloatArray | None = None
    h: FloatArray | None = None
    c: FloatArray | None = None

    @property
    def rank(self) -> int:
        """Number of rows of A."""
        return int(self.A.shape[0])
