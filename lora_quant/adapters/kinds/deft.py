"""DEFT: a subspace of the weight's outputs is removed, and something trained put in its place.

    W' = W - Q (right' W) + s Q R        Q [out, r], right [out, r], R [r, in]

    relu    Q = P,                        right = relu(P)
    qr      Q = the first factor of P,    right = Q

so that ΔW = Q (s R - right' W). With `para` there is no R: the subspace is only removed. The sign
of a column of Q matters beside R; it is the one that Householder's method gives, in LAPACK's
convention, which NumPy and torch share.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from lora_quant.adapters.frame.kind_rule import KindRule
from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.lowered import Lowered, ModuleShape, Need
from lora_quant.adapters.maths.weight_products import expect_weight, times_weight
from lora_quant.errors import UnsupportedAdapterError

_RELU, _QR = "relu", "qr"


class DeftRule(KindRule):
    """ΔW = Q (s R - right' W)."""

    kind: ClassVar[str] = "DEFT"
    rank = "r"
    required = ("deft_P",)
    optional = ("deft_R",)
    rank_field = ("r", 8)
    used = frozenset({"alpha", "decomposition_method", "para"})
    neutral = frozenset({"deft_dropout", "fan_in_fan_out", "init_scale", "init_weights"})

    def shape(self, headers: Headers) -> ModuleShape:
        """Rank from P, which PEFT cuts to the outputs; in from R where there is one."""
        self._method(headers)
        out, rank = headers.dims("deft_P", 2)
        if rank != min(headers.rank, out):
            headers.expect_rank("deft_P", rank)
        inputs = None
        if headers.config.flag("para"):
            if headers.has("deft_R"):
                raise headers.error(
                    "deft_R", "the module has deft_R, expected none with para in the configuration"
                )
        else:
            inputs = headers.dims("deft_R", 2)[1]
            headers.expect({"deft_R": (rank, inputs)})
        return ModuleShape(headers.module, rank, inputs, out, scale=headers.scale, need=Need.WEIGHT)

    def formula(self, module: ModuleTensors) -> Lowered:
        """A = R alpha / r - right' W (without alpha: R), B = Q, s = 1."""
        config, P = module.config, module["deft_P"]
        Q, right = P, np.maximum(P, 0.0)
        if config.names("decomposition_method") == _QR:
            Q = right = np.linalg.qr(P)[0]
        name = module.shape.module
        expect_weight(
            module.base, name, module.source.path, out=len(P), columns=module.shape.in_features
        )
        A = -times_weight(module.base, name, right)
        if "deft_R" in module:
            alpha = config.number("alpha", 0.0)
            A += module["deft_R"] * (alpha / P.shape[1] if alpha else 1.0)
        return Lowered(A, Q, module.s)

    @staticmethod
    def _method(headers: Headers) -> None:
        method = headers.config.names("decomposition_method") or _RELU
        if method not in (_RELU, _QR):
            raise UnsupportedAdapterError(
                f"decomposition_method is {method!r}, expected {_RELU!r} or {_QR!r}",
                where=headers.config.where("decomposition_method"),
                hint="merge the adapter into the base with PEFT",
            )
