"""GRALORA: the weight is cut into k by k blocks, each of which has an update of rank r / k.

    y_j += s * sum_n B_jn (A_jn x_n)       + s * B_general (A_general x)

x_n and y_j are the k parts of the input and of the output. The file holds, for each part n of the
input, the A of all j side by side, `gralora_A [k, in / k, r]`; and for each part j of the output
the B of all n, `gralora_B [k, r, out / k]`. As one product it has k * k * (r / k) = k * r ranks,
each of which reads one part and writes one part.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.frame.kind_rule import KindRule
from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.lowered import Lowered, ModuleShape

_A = "gralora_A_general.weight"
_B = "gralora_B_general.weight"

Matrix = NDArray[np.float64]


class GraloraRule(KindRule):
    """Block (j, n) of ΔW = s B_jn A_jn, s = alpha / (r + hybrid_r)."""

    kind: ClassVar[str] = "GRALORA"
    rank = "gralora_k r + hybrid_r"
    required = ("gralora_A", "gralora_B")
    optional = (_A, _B)
    rank_field = ("r", 32)
    alpha_field = ("alpha", 64.0)
    used = frozenset({"gralora_k", "hybrid_r"})
    neutral = frozenset({"fan_in_fan_out", "gralora_dropout", "init_weights"})

    def scale(self, config: PeftConfig, alpha: float, rank: int) -> float:
        """Alpha over the ranks of both parts."""
        return alpha / (rank + config.number("hybrid_r", 0))

    def shape(self, headers: Headers) -> ModuleShape:
        """Rank k * r, and hybrid_r for the part without blocks."""
        blocks, part, rank = headers.dims("gralora_A", 3)
        out = headers.dims("gralora_B", 3)[2] * blocks
        headers.expect({"gralora_B": (blocks, rank, out // blocks)})
        headers.expect_rank("gralora_A", rank)
        expected = headers.config.positive("gralora_k", 2)
        if blocks != expected or rank % blocks:
            raise headers.error(
                "gralora_A",
                f"gralora_A has {blocks} blocks of rank {rank}, expected gralora_k = {expected} "
                "blocks and a rank that they divide",
            )
        general = headers.dims(_A, 2)[0] if headers.has(_A) or headers.has(_B) else 0
        if general:
            headers.expect({_A: (general, part * blocks), _B: (out, general)})
        hybrid = headers.config.number("hybrid_r", 0)
        if general != hybrid:
            raise headers.error(
                _A,
                f"the part without blocks has rank {general}, expected hybrid_r = {hybrid:g}",
                hint="the configuration is not the one that the weights were saved with",
            )
        return ModuleShape(
            headers.module,
            blocks * rank + general,
            part * blocks,
            out,
            scale=headers.scale,
        )

    def formula(self, module: ModuleTensors) -> Lowered:
        """Ranks by part of the output, then of the input, then within the block."""
        A, B = one_product(module["gralora_A"], module["gralora_B"])
        if _A in module:
            A, B = np.concatenate([A, module[_A]]), np.concatenate([B, module[_B]], axis=1)
        return Lowered(A, B, module.s)


def one_product(a: Matrix, b: Matrix) -> tuple[Matrix, Matrix]:
    """`a [k, in / k, r]`, `b [k, r, out / k]` -> A `[k * r, in]`, B `[out, k * r]`."""
    k, inputs, r = a.shape
    outputs = b.shape[2]
    A = np.zeros((k, k, r // k, k, inputs))
    B = np.zeros((k, outputs, k, k, r // k))
    for j in range(k):
        B[j, :, j] = b[j].T.reshape(outputs, k, r // k)
        for n in range(k):
            A[j, n, :, n] = a[n, :, j * (r // k) : (j + 1) * (r // k)].T
    return A.reshape(k * r, k * inputs), B.reshape(k * outputs, k * r)
