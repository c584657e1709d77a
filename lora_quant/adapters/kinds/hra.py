"""HRA: the weight is reflected at r trained hyperplanes, which is an update of rank r.

    W' = W H_1 ... H_r        H_i = I - 2 u_i u_i'        u [in * kernel, r], each of length 1

A product of reflections is the identity less a product of three matrices (compact WY form):

    H_1 ... H_r = I - U T U'      T upper triangular      ->      ΔW = -(W U T) U'

With `apply_GS` the u are made orthogonal first, and T is 2 I.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.frame.kind_rule import KindRule
from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.lowered import Lowered, ModuleShape, Need
from lora_quant.adapters.maths.weight_products import expect_weight, weight_times
from lora_quant.errors import AdapterError

Matrix = NDArray[np.float64]

# below this share of its length, what is left of a float32 vector is rounding
_LEFT_OVER = 1e-5


class HraRule(KindRule):
    """ΔW = -(W U T) U'."""

    kind: ClassVar[str] = "HRA"
    adds_up = False
    rank = "r"
    required = ("hra_u",)
    rank_field = ("r", 8)
    used = frozenset({"apply_GS"})
    neutral = frozenset({"init_weights"})

    def shape(self, headers: Headers) -> ModuleShape:
        """Rank and the flattened inputs; the file does not tell out."""
        inputs, rank = headers.dims("hra_u", 2)
        headers.expect_rank("hra_u", rank)
        return ModuleShape(
            headers.module, rank, inputs, None, None, headers.scale, need=Need.WEIGHT
        )

    def formula(self, module: ModuleTensors) -> Lowered:
        """A = U', B = -W U T, s = 1."""
        name, u = module.shape.module, module["hra_u"]
        expect_weight(module.base, name, module.source.path, columns=len(u))
        lengths = np.linalg.norm(u, axis=0)
        if not lengths.all():
            raise self._dependent(module, int(np.argmin(lengths)), "is zero")
        if module.config.flag("apply_GS"):
            U = self._orthogonal(module, u)
            T = 2.0 * np.eye(U.shape[1])
        else:
            U = u / lengths
            T = wy_triangle(U)
        return Lowered(np.ascontiguousarray(U.T), -weight_times(module.base, name, U @ T), module.s)

    def _orthogonal(self, module: ModuleTensors, u: Matrix) -> Matrix:
        """Gram-Schmidt, one vector after the other."""
        U = np.empty_like(u)
        for i in range(u.shape[1]):
            rest = u[:, i].copy()
            for j in range(i):
                rest -= (U[:, j] @ rest) * U[:, j]
            length = np.linalg.norm(rest)
            if length <= _LEFT_OVER * np.linalg.norm(u[:, i]):
                raise self._dependent(module, i, "depends on those before it")
            U[:, i] = rest / length
        return U

    @staticmethod
    def _dependent(module: ModuleTensors, column: int, problem: str) -> AdapterError:
        return AdapterError(
            f"column {column} of hra_u {problem}: its direction, and so the result of PEFT, is "
            "nothing but rounding",
            where=module.where,
            hint="the adapter is not trained, or with apply_GS from equal pairs of columns; train "
            "it on, or with init_weights=False",
        )


def wy_triangle(U: Matrix) -> Matrix:
    """T `[r, r]` of the product of the reflections at the columns of U `[n, r]`, in their order."""
    rank = U.shape[1]
    products = U.T @ U
    T = np.zeros((rank, rank))
    for i in range(rank):
        T[i, i] = 2.0
        T[:i, i] = -2.0 * (T[:i, :i] @ products[:i, i])
    return T
