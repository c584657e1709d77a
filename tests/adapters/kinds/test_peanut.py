"""PEANUT against its network, row by row of the transposed weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.adapters.kinds.peanut import ACTIVATIONS, PeanutRule
from lora_quant.errors import AdapterError, UnsupportedAdapterError
from tests.adapters.kinds.held import Array, Q, SmallBase, checkpoint, lowered, of_module, update

RULE = PeanutRule()
# The definitions, of one number.
ONE: dict[str, Callable[[float], float]] = {
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "gelu_new": lambda x: (
        x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))) / 2
    ),
    "leaky_relu": lambda x: x if x > 0 else x / 100,
    "linear": lambda x: x,
    "relu": lambda x: max(x, 0.0),
    "relu2": lambda x: max(x, 0.0) ** 2,
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "tanh": math.tanh,
}
ONE |= {"gelu_pytorch_tanh": ONE["gelu_new"], "swish": ONE["silu"]}
# Of order 1 through a few roundings each.
CLOSE = 16 * 2.0**-53


@pytest.mark.parametrize("name", ACTIVATIONS)
@given(x=st.floats(-30, 30))
def test_an_activation_is_its_definition(name: str, x: float) -> None:
    (found,) = ACTIVATIONS[name](np.array([x]))
    assert abs(found - ONE[name](x)) <= CLOSE * max(1.0, x * x)


def network(weight: Array, t: dict[str, Array], f: Callable[[float], float], depth: int) -> Array:
    rows = []
    for column in weight.T:
        x = np.array([f(a @ column) for a in t["peanut_A.weight"]])
        kept = []
        for i in range(depth):
            kept.append(x)
            x = np.array([f(e @ x) for e in t[f"peanut_encoders.{i}.weight"]])
        for i in range(depth):
            x = np.array([f(d @ x) for d in t[f"peanut_decoders.{i}.weight"]]) + kept[-1 - i]
        rows.append(t["peanut_B.weight"] @ x)
    return np.array(rows).T


def parts(depth: int, rank: int = 3, out: int = 4) -> dict[str, Array]:
    rng = np.random.default_rng(depth)
    shapes = {"peanut_A.weight": (rank, out), "peanut_B.weight": (out, rank)}
    for side in ("encoders", "decoders"):
        shapes |= {f"peanut_{side}.{i}.weight": (rank, rank) for i in range(depth)}
    return {name: rng.normal(size=shape) / 2 for name, shape in shapes.items()}


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("name", ["relu", "tanh", "gelu"])
def test_the_update_is_the_networks_value_at_the_weight(depth: int, name: str) -> None:
    weight = np.random.default_rng(9).normal(size=(4, 5))
    t = parts(depth)
    fields = {"r": 3, "depth": depth, "act_fn": name, "scaling": 1.5}
    found = lowered(RULE, checkpoint("PEANUT", of_module(t), **fields), SmallBase({Q: weight}))
    expected = network(weight, t, ONE[name], depth)
    # eight layers of sums of four, values of order 10
    assert np.abs(update(found) - 1.5 * expected).max() <= 8 * 4 * 4 * 2.0**-53 * 100
    np.testing.assert_array_equal(found.s, np.full(3, 1.5))


def test_an_unknown_activation_is_refused() -> None:
    held = checkpoint("PEANUT", of_module(parts(0)), r=3, act_fn="mish")
    with pytest.raises(UnsupportedAdapterError, match="act_fn is 'mish', expected one of gelu, "):
        RULE.describe(held)


@pytest.mark.parametrize(
    ("depth", "fields", "message"),
    [
        (1, {"depth": 2}, r"the module has no peanut_encoders.1.weight"),
        (2, {"depth": 1}, r"peanut_encoders.1.weight, expected none beyond depth = 1"),
        (0, {"r": 2}, "has rank 3 in the weights, expected 2"),
        (0, {"depth": 10**12}, "the module has 2 tensors, depth is 1000000000000"),
        (0, {"depth": -1}, "the module has 2 tensors, depth is -1"),
        (0, {"depth": 0.5}, "depth is 0.5, expected a whole number"),
    ],
)
def test_tensors_and_configuration_must_agree(
    depth: int, fields: dict[str, Any], message: str
) -> None:
    held = checkpoint("PEANUT", of_module(parts(depth)), **({"r": 3, "depth": depth} | fields))
    with pytest.raises(AdapterError, match=message):
        RULE.describe(held)


def test_a_factor_of_another_shape_is_refused() -> None:
    tensors = of_module(parts(0) | {"peanut_B.weight": np.ones((5, 3))})
    with pytest.raises(AdapterError, match=r"B.weight has shape \[5, 3\], expected \[4, 3\]"):
        RULE.describe(checkpoint("PEANUT", tensors, r=3))
