"""PEANUT: the update is a small network of the weight itself, and of low rank by its last layer.

X = f(W' A')                          [in, r]        A [r, out], B [out, r]
X = f(X E_i')          for each encoder, keeping what went in
X = f(X D_i') + kept   for each decoder, taking back the last kept first
ΔW = scaling B X'
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.frame.kind_rule import KindRule
from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.lowered import Lowered, ModuleShape, Need
from lora_quant.adapters.maths.weight_products import expect_weight, times_weight
from lora_quant.errors import UnsupportedAdapterError

Matrix = NDArray[np.float64]


def _sigmoid(x: Matrix) -> Matrix:
    # written with tanh, which does not overflow
    result: Matrix = 0.5 * (1.0 + np.tanh(0.5 * x))
    return result


def _gelu(x: Matrix) -> Matrix:
    result: Matrix = 0.5 * x * (1.0 + np.vectorize(math.erf, otypes=[np.float64])(x / 2**0.5))
    return result


def _gelu_tanh(x: Matrix) -> Matrix:
    result: Matrix = 0.5 * x * (1.0 + np.tanh((2.0 / math.pi) ** 0.5 * (x + 0.044715 * x**3)))
    return result


ACTIVATIONS: Mapping[str, Callable[[Matrix], Matrix]] = {
    "gelu": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0.0),
    "relu2": lambda x: np.maximum(x, 0.0) ** 2,
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "swish": lambda x: x * _sigmoid(x),
    "tanh": np.tanh,
}


class PeanutRule(KindRule):
    """ΔW = scaling B X', X the network's value at W."""

    kind: ClassVar[str] = "PEANUT"
    rank = "r"
    required = ("peanut_A.weight", "peanut_B.weight")
    optional = ("peanut_encoders.#.weight", "peanut_decoders.#.weight")
    rank_field = ("r", 32)
    used = frozenset({"act_fn", "depth", "scaling"})
    neutral = frozenset({"init_weights"})

    def scale(self, config: PeftConfig, alpha: float, rank: int) -> float:
        """The factor that the configuration gives as it is."""
        del alpha, rank
        return config.number("scaling", 1.0)

    def check(self, config: PeftConfig) -> None:
        """Refuse an activation that is not known here."""
        name = config.names("act_fn") or "relu"
        if name not in ACTIVATIONS:
            raise UnsupportedAdapterError(
                f"act_fn is {name!r}, expected one of {', '.join(sorted(ACTIVATIONS))}",
                where=config.where("act_fn"),
                hint="merge the adapter into the base with PEFT",
            )

    def shape(self, headers: Headers) -> ModuleShape:
        """Rank and out from A; as many encoders and decoders as depth says."""
        rank, out = headers.dims("peanut_A.weight", 2)
        headers.expect({"peanut_B.weight": (out, rank)})
        headers.expect_rank("peanut_A.weight", rank)
        depth = headers.config.whole("depth", 0)
        if not 0 <= depth <= len(headers.names):
            raise headers.error(
                "peanut_A.weight", f"the module has {len(headers.names)} tensors, depth is {depth}"
            )
        hidden = _hidden("encoders", depth) + _hidden("decoders", depth)
        headers.expect(dict.fromkeys(hidden, (rank, rank)))
        extra = [n for n in headers.names if n not in hidden and n not in self.required]
        if extra:
            raise headers.error(
                extra[0], f"the module has {extra[0]}, expected none beyond depth = {depth}"
            )
        return ModuleShape(headers.module, rank, None, out, scale=headers.scale, need=Need.WEIGHT)

    def formula(self, module: ModuleTensors) -> Lowered:
        """A = X', B = B, s = scaling."""
        config, name = module.config, module.shape.module
        depth = config.whole("depth", 0)
        activation = ACTIVATIONS[str(config.names("act_fn") or "relu")]
        A = module["peanut_A.weight"]
        expect_weight(module.base, name, module.source.path, out=A.shape[1])
        X = activation(times_weight(module.base, name, A.T))
        kept = []
        for parameter in _hidden("encoders", depth):
            kept.append(X)
            X = activation(module[parameter] @ X)
        for parameter in _hidden("decoders", depth):
            X = activation(module[parameter] @ X) + kept.pop()
        return Lowered(X, module["peanut_B.weight"], module.s)


def _hidden(side: str, depth: int) -> tuple[str, ...]:
    return tuple(f"peanut_{side}.{i}.weight" for i in range(depth))
