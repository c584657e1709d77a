"""DELORA: the directions of A and B are trained apart from their common strength lambda.

    ΔW = B diag(lambda / (r |a_i| |b_i|)) A diag(n)

a_i are the rows of A, b_i the columns of B, n the norms of the columns of the base's weight, which
the file holds: no base is needed. Norms below 1e-4 count as 1e-4.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from lora_quant.adapters.frame.kind_rule import KindRule
from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.lowered import Lowered, ModuleShape

_SMALLEST_NORM = 1e-4


class DeloraRule(KindRule):
    """ΔW = B diag(s) (A diag(n)), s_i = lambda / (r |a_i| |b_i|)."""

    kind: ClassVar[str] = "DELORA"
    rank = "r"
    required = ("delora_A", "delora_B", "delora_lambda", "delora_w_norm")
    rank_field = ("r", 8)
    patterns = True
    neutral = frozenset(
        {
            "delora_lambda",  # only the start of what the file holds
            "init_weights",
            "lambda_pattern",
            "module_dropout",
        }
    )

    def shape(self, headers: Headers) -> ModuleShape:
        """Rank r, which is in the scale."""
        rank, inputs = headers.dims("delora_A", 2)
        out = headers.dims("delora_B", 2)[0]
        headers.expect({"delora_B": (out, rank), "delora_lambda": (1,), "delora_w_norm": (inputs,)})
        headers.expect_rank("delora_A", rank)
        return ModuleShape(headers.module, rank, inputs, out)

    def formula(self, module: ModuleTensors) -> Lowered:
        """A with its columns scaled, B as stored."""
        A, B = module["delora_A"], module["delora_B"]
        rows = np.maximum(np.linalg.norm(A, axis=1), _SMALLEST_NORM)
        columns = np.maximum(np.linalg.norm(B, axis=0), _SMALLEST_NORM)
        s = module["delora_lambda"][0] / (len(A) * rows * columns)
        return Lowered(A * module["delora_w_norm"], module.stored("delora_B"), s)
