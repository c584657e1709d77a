"""LOHA: the update is the elementwise product of two low-rank matrices.

A row of a Khatri-Rao product is the Kronecker product of two rows, so that

    (U1 V1) ⊙ (U2 V2) = (U1 kr U2) (V1' kr V2')'        rank r * r

Where r * r exceeds the sizes of the update, the update itself is one of the factors.

Linear: w_a `[out, r]`, w_b `[r, in]`. Convolution: w_b `[r, in * kernel]`; or, with the cores t
`[r, r, *kernel]`, w_a `[r, out]` and w_b `[r, in]` (CP decomposition).
"""

from __future__ import annotations

import math
from typing import ClassVar

from lora_quant.adapters.frame.kind_rule import KindRule
from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.kinds.cores import core_kernel, with_core
from lora_quant.adapters.lowered import Lowered, ModuleShape
from lora_quant.adapters.maths.algebra import khatri_rao, shortest


class LohaRule(KindRule):
    """ΔW = s (w1_a w1_b) ⊙ (w2_a w2_b), s = alpha / r."""

    kind: ClassVar[str] = "LOHA"
    rank = "min(r², in, out)"
    required = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    optional = ("hada_t1", "hada_t2")
    rank_field = ("r", 8)
    alpha_field = ("alpha", 8.0)
    patterns = True
    neutral = frozenset({"init_weights", "module_dropout", "rank_dropout", "use_effective_conv2d"})

    def shape(self, headers: Headers) -> ModuleShape:
        """Rank min(r * r, out, in * kernel); the kernel is told by the cores alone."""
        rank, inputs = headers.dims("hada_w1_b", 2)
        has_cores = headers.has("hada_t1") or headers.has("hada_t2")
        out = headers.dims("hada_w1_a", 2)[1 if has_cores else 0]
        expected: dict[str, tuple[int, ...]] = {
            "hada_w1_a": (rank, out) if has_cores else (out, rank),
            "hada_w2_a": (rank, out) if has_cores else (out, rank),
            "hada_w2_b": (rank, inputs),
        }
        kernel, size = None, 1
        if has_cores:
            core = headers.dims("hada_t1")
            if len(core) not in (3, 4):
                raise headers.error(
                    "hada_t1", f"hada_t1 has shape {list(core)}, expected 3 or 4 axes"
                )
            kernel, size = core_kernel(core), math.prod(core[2:])
            expected["hada_t1"] = expected["hada_t2"] = (rank, rank, *core[2:])
        headers.expect(expected)
        headers.expect_rank("hada_w1_b", rank)
        ranks = min(rank * rank, out, inputs * size)
        inputs = inputs * size if kernel is None else inputs
        return ModuleShape(headers.module, ranks, inputs, out, kernel, headers.scale)

    def formula(self, module: ModuleTensors) -> Lowered:
        """A = (w1_b' kr w2_b')', B = w1_a kr w2_a; with cores, w_b is their product with t."""
        w1_a, w2_a = module["hada_w1_a"], module["hada_w2_a"]
        w1_b, w2_b = module["hada_w1_b"], module["hada_w2_b"]
        if "hada_t1" in module:
            w1_b, w2_b = with_core(module["hada_t1"], w1_b), with_core(module["hada_t2"], w2_b)
            w1_a, w2_a = w1_a.T, w2_a.T
        B, A = shortest(khatri_rao(w1_a, w2_a), khatri_rao(w1_b.T, w2_b.T).T)
        kernel = module.shape.kernel
        return Lowered(A if kernel is None else A.reshape(len(A), -1, *kernel), B, module.s)
