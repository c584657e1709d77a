"""GLORA against its own definition, in every form of its parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lora_quant.adapters.kinds.glora import GloraRule
from lora_quant.adapters.lowered import Need
from lora_quant.errors import AdapterError, UnsupportedAdapterError
from tests.adapters.kinds.held import Q, SmallBase, checkpoint, dense, lowered, of_module, update

Array = NDArray[Any]
RULE = GloraRule()
OUT, IN, RANK = 4, 5, 2
# Sums of at most 10 products of three normal values in double precision.
TINY = 512 * 2.0**-53


def matrix(rng: np.random.Generator, path: str, form: str) -> tuple[dict[str, Array], Array]:
    """Tensors of A, B or C, and what they stand for, broadcast by NumPy."""
    rows, columns = (IN, 1) if path == "C" else (OUT, IN)
    if form == "lora":
        left, right = rng.normal(size=(rows, RANK)), rng.normal(size=(RANK, columns))
        return {f"glora_{path}.Xd": left, f"glora_{path}.Xu": right}, left @ right
    if form == "none":
        zeros = np.zeros((rows, columns))
        return {f"glora_{path}.zeros": zeros}, zeros
    value = rng.normal(size=(1,) if form == "constant" else (rows, 1))
    return {f"glora_{path}.X": value}, value


def vector(rng: np.random.Generator, path: str, form: str) -> tuple[dict[str, Array], Array]:
    """Tensors of D or E, and what they stand for."""
    if form == "none":
        return {f"glora_{path}.zeros": np.zeros(OUT)}, np.zeros(OUT)
    value = rng.normal(size=OUT if form == "vector" else 1)
    return {f"glora_{path}.X": value}, value


def made(
    rng: np.random.Generator, forms: tuple[str, str, str]
) -> tuple[dict[str, Array], dict[str, Array]]:
    tensors: dict[str, Array] = {}
    values: dict[str, Array] = {}
    for path, form in zip("ABCDE", (forms[0], *forms[:2], forms[2], forms[2]), strict=True):
        more, values[path] = (vector if path in "DE" else matrix)(rng, path, form)
        tensors |= more
    return tensors, values


@given(
    a_b=st.sampled_from(["lora", "vector", "constant", "none"]),
    c=st.sampled_from(["lora", "vector", "none"]),
    d_e=st.sampled_from(["vector", "constant", "none"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_weight_and_bias_are_scaled_and_shifted(a_b: str, c: str, d_e: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tensors, values = made(rng, (a_b, c, d_e))
    W, b = rng.normal(size=(OUT, IN)), rng.normal(size=OUT)
    base = SmallBase({Q: W}, {Q: b})
    fields = {"r": RANK, "config_A_B": a_b, "config_C": c, "config_D_E": d_e}
    held = checkpoint("GLORA", of_module(tensors), **fields)
    weight = W + W * values["A"] + values["B"]
    bias = b + b * values["D"] + values["E"] + (W @ values["C"])[:, 0]
    limit = TINY * 5**3
    if a_b == "lora":
        found = dense(RULE, held, base)
        assert np.abs(W + found.delta - weight).max() <= limit
        assert found.c is not None
        assert np.abs(b + found.c - bias).max() <= limit
        return
    low = lowered(RULE, held, base)
    g = np.ones(OUT) if low.g is None else low.g
    shift = np.zeros(OUT) if low.c is None else low.c
    assert np.abs(g[:, None] * W + update(low) - weight).max() <= limit
    assert np.abs(g * b + shift - bias).max() <= limit
    assert low.rank == (0 if a_b == "none" else 1)
    assert (low.g is None) == (a_b == "none")


@pytest.mark.parametrize(
    ("forms", "need"),
    [
        (("none", "none", "none"), Need.NOTHING),
        (("none", "none", "vector"), Need.SIZES),
        (("vector", "none", "none"), Need.SIZES),
        (("constant", "vector", "none"), Need.WEIGHT),
        (("lora", "none", "none"), Need.WEIGHT),
    ],
)
def test_the_weight_is_needed_only_where_it_is_read(
    forms: tuple[str, str, str], need: Need
) -> None:
    tensors, _ = made(np.random.default_rng(0), forms)
    fields = dict(zip(("config_A_B", "config_C", "config_D_E"), forms, strict=True))
    held = checkpoint("GLORA", of_module(tensors), r=RANK, **fields)
    assert RULE.describe(held).shapes[Q].need is need


FORMS = ("vector", "vector", "vector")
FIELDS = {"r": RANK, "config_A_B": "vector", "config_C": "vector", "config_D_E": "vector"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"glora_A.X": None}, "of glora_A the module has nothing, expected X, zeros, or Xd and Xu"),
        ({"glora_A.zeros": (OUT, IN)}, "of glora_A the module has X, zeros, expected"),
        ({"glora_A.X": (OUT, 2)}, r"glora_A.X has shape \[4, 2\], expected \[out, 1\] or \[1\]"),
        ({"glora_C.X": (IN,)}, r"glora_C.X has shape \[5\], expected \[in, 1\]"),
        ({"glora_D.X": (OUT, 1)}, r"glora_D.X has shape \[4, 1\], expected \[out\] or \[1\]"),
        ({"glora_E.X": (OUT + 1,)}, r"do not agree on out \(glora_A: 4, .*, glora_E: 5\)"),
        ({"glora_A.X": (1,)}, "glora_A of module .* is 'constant' in the weights, but config_A_B"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(
    changed: dict[str, tuple[int, ...] | None], message: str
) -> None:
    tensors, _ = made(np.random.default_rng(0), FORMS)
    for name, shape in changed.items():
        tensors.pop(name, None)
        if shape is not None:
            tensors[name] = np.ones(shape)
            if name == "glora_A.zeros":
                tensors["glora_A.X"] = np.ones((OUT, 1))
    with pytest.raises(AdapterError, match=message):
        RULE.describe(checkpoint("GLORA", of_module(tensors), **FIELDS))


def test_zeros_that_are_none_are_refused() -> None:
    tensors, _ = made(np.random.default_rng(0), ("vector", "none", "vector"))
    tensors["glora_C.zeros"][2] = 1
    held = checkpoint("GLORA", of_module(tensors), **(FIELDS | {"config_C": "none"}))
    base = SmallBase({Q: np.ones((OUT, IN))})
    with pytest.raises(AdapterError, match="values that are not zero") as caught:
        lowered(RULE, held, base)
    assert caught.value.where.tensor == f"{Q}.glora_C.zeros"


def test_a_replaced_bias_is_refused() -> None:
    with pytest.raises(UnsupportedAdapterError, match="bias is set: the base's bias is replaced"):
        RULE.describe(checkpoint("GLORA", {}, bias="glora_only"))


def test_another_rank_than_the_configurations_is_refused() -> None:
    tensors, _ = made(np.random.default_rng(0), ("lora", "none", "none"))
    held = checkpoint("GLORA", of_module(tensors), r=8, config_C="none", config_D_E="none")
    with pytest.raises(AdapterError, match="has rank 2 in the weights, expected 8"):
        RULE.describe(held)
