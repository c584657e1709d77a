"""OSF: the smaller singular triplets of the weight are trained, the larger ones stay.

    W' = W_high + U diag(S) V        U [out, n], S [n], V [n, in], n = min(out, in) - effective_rank

The update is the trained part less what it replaces, of rank 2 n:

    ΔW = U diag(S) V - W_low         W_low = the n smallest singular triplets of W
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.base_modules import whole_weight
from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.frame.kind_rule import KindRule
from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.frame.patterns import compile_regex
from lora_quant.adapters.lowered import Lowered, ModuleShape, Need
from lora_quant.adapters.maths.weight_products import expect_weight
from lora_quant.errors import AdapterError

Matrix = NDArray[np.float64]
_U, _S, _V = (f"osf_svd_params.{name}" for name in ("U_low", "S_low", "V_low"))


class OsfRule(KindRule):
    """ΔW = U diag(S) V - W_low."""

    kind: ClassVar[str] = "OSF"
    adds_up = False
    rank = "2 (min(in, out) - effective_rank)"
    required = (_U, _S, _V)
    used = frozenset({"effective_rank", "rank_pattern"})
    neutral = frozenset({"init_weights", "target_svd_config"})

    def shape(self, headers: Headers) -> ModuleShape:
        """Rank 2 n; n must leave the effective rank that the configuration gives."""
        out, count = headers.dims(_U, 2)
        _, inputs = headers.dims(_V, 2)
        headers.expect({_S: (count,), _V: (count, inputs)})
        smaller = min(out, inputs)
        kept = _effective_rank(headers.config, headers.module, smaller)
        if count != smaller - kept:
            raise headers.error(
                _S,
                f"{_S} has {count} values, expected {smaller - kept}: the configuration keeps "
                f"{kept} of {smaller}",
            )
        return ModuleShape(
            headers.module, 2 * count, inputs, out, scale=headers.scale, need=Need.WEIGHT
        )

    def formula(self, module: ModuleTensors) -> Lowered:
        """A = [V; A_low], B = [U, -B_low], s = [S, 1], W_low = B_low A_low."""
        U, S, V = (module[name] for name in self.required)
        name = module.shape.module
        expect_weight(module.base, name, module.source.path, out=len(U), columns=V.shape[1])
        B_low, A_low = smallest_part(whole_weight(module.base, name).reshape(len(U), -1), len(S))
        return Lowered(
            np.concatenate([V, A_low]),
            np.concatenate([U, -B_low], axis=1),
            np.concatenate([S, np.ones(len(S))]),
        )


def smallest_part(W: Matrix, count: int) -> tuple[Matrix, Matrix]:
    """B `[out, count]` and A `[count, in]` whose product is the smallest singular triplets of W.

    From the eigenvectors of the smaller of W W' and W' W, float64. Signs and order of the vectors
    cancel in the product. Where the gap at the cut is not closed, the error is about 2**-53 times
    the ratio of the largest squared singular value to that gap.
    """
    out, inputs = W.shape
    if out <= inputs:
        vectors = np.linalg.eigh(W @ W.T)[1][:, :count]
        return vectors, vectors.T @ W
    vectors = np.linalg.eigh(W.T @ W)[1][:, :count]
    return W @ vectors, vectors.T


def _effective_rank(config: PeftConfig, module: str, smaller: int) -> int:
    """How many triplets stay: by the first pattern found in the name, else for all, else half.

    A fraction is one of the weight's smaller side.
    """
    value, field = config.fields.get("effective_rank"), "effective_rank"
    patterns = config.number_patterns("rank_pattern")
    for pattern in patterns:
        if compile_regex(config, "rank_pattern", pattern).search(module):
            value, field = patterns[pattern], "rank_pattern"
            break
    if value is None:
        return smaller // 2
    if not _is_rank(value):
        raise AdapterError(
            f"{field} is {value!r}, expected a positive number",
            where=config.where(field),
            hint="save the adapter again with PEFT, or correct the field",
        )
    is_share = isinstance(value, float) and value <= 1
    return min(smaller, int(smaller * value) if is_share else int(value))


def _is_rank(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 2**31
