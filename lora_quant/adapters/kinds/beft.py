"""BEFT: a trained bias beside the base's own.

y = W x + b + c        beft_bias [1, out]: c
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from lora_quant.adapters.frame.kind_rule import KindRule
from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.lowered import Lowered, ModuleShape


class BeftRule(KindRule):
    """c = beft_bias; no ranks: A is `[0, 0]`, as the file does not tell in, and B `[out, 0]`."""

    kind: ClassVar[str] = "BEFT"
    form = "c = beft_bias"
    rank = "0"
    required = ("beft_bias",)
    neutral = frozenset({"init_weights"})

    def shape(self, headers: Headers) -> ModuleShape:
        """Rank 0."""
        out = headers.dims("beft_bias", 2)[1]
        headers.expect({"beft_bias": (1, out)})
        return ModuleShape(headers.module, 0, None, out, vectors=frozenset("c"))

    def formula(self, module: ModuleTensors) -> Lowered:
        """The bias as it is."""
        c = module["beft_bias"].reshape(-1)
        return Lowered(np.zeros((0, 0)), np.zeros((len(c), 0)), module.s, c=c)
