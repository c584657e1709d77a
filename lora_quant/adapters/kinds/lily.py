"""LILY: one A, several B, and a router that weighs the B by the input.

    p = softmax(R (A x)), averaged over all tokens        y += scaling * sum_e p_e B_e (A x)

In canonical form every expert has ranks of its own, with the same A; the router reads those of the
first expert. Layers share A or B while they train; the file holds them for each module.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.frame.kind_rule import KindRule
from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.lowered import Lowered, ModuleShape

_A = "lily_A.weight"
_B = "lily_B.weight"
_ROUTER = "lily_router.weight"


class LilyRule(KindRule):
    """y += s * sum_e p_e(x) B_e (A x), s = scaling."""

    kind: ClassVar[str] = "LILY"
    rank = "num_B r"
    required = (_A, _B, _ROUTER)
    rank_field = ("r", 32)
    used = frozenset({"num_B", "scaling"})
    neutral = frozenset({"init_weights", "stride_A"})

    def scale(self, config: PeftConfig, alpha: float, rank: int) -> float:
        """The field `scaling` as it is."""
        del alpha, rank
        return config.number("scaling", 1.0)

    def shape(self, headers: Headers) -> ModuleShape:
        """Rank experts * r; A `[r, in]`, B `[experts * r, out]`, router `[experts, r]`."""
        rank, inputs = headers.dims(_A, 2)
        experts, out = headers.config.positive("num_B", 2), headers.dims(_B, 2)[1]
        headers.expect_rank(_A, rank)
        headers.expect({_B: (experts * rank, out), _ROUTER: (experts, rank)})
        return ModuleShape(
            headers.module, experts * rank, inputs, out, scale=headers.scale, experts=experts
        )

    def formula(self, module: ModuleTensors) -> Lowered:
        """A for each expert, B side by side, the router with zeros for the copies of A."""
        A, router = module[_A], module[_ROUTER]
        copies = np.zeros((len(router), module.shape.rank - len(A)))
        return Lowered(
            np.tile(A, (len(router), 1)),
            module[_B].T,
            module.s,
            router=np.concatenate([router, copies], axis=1),
        )
