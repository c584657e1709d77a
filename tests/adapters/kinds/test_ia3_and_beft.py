"""Kinds of vectors only: which one it is, which sizes are told, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.adapters.formats.lycoris_kinds import IA3_BIAS
from lora_quant.adapters.kinds.beft import BeftRule
from lora_quant.adapters.kinds.ia3 import Ia3Rule
from lora_quant.adapters.lowered import Need
from lora_quant.errors import AdapterError, UnsupportedAdapterError
from tests.adapters.kinds.held import Q, SmallBase, checkpoint, lowered, of_module

IA3 = Ia3Rule()
BEFT = BeftRule()
L = np.array([2.0, 0.5, 3.0])


def ia3(shape: tuple[int, ...], **fields: Any) -> Any:
    return checkpoint("IA3", of_module({"ia3_l": L.reshape(shape)}), **fields)


@pytest.mark.parametrize("modules", [[], None])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_column_scales_outputs(modules: list[str] | None, dtype: Any) -> None:
    tensors = of_module({"ia3_l": L.reshape(3, 1).astype(dtype)})
    found = lowered(IA3, checkpoint("IA3", tensors, feedforward_modules=modules))
    np.testing.assert_array_equal(found.g, L)
    assert found.h is None
    assert found.c is None
    assert found.A.shape == (0, 0)
    assert found.B.shape == (3, 0)


@pytest.mark.parametrize("modules", [["q_proj"], ["j"], r".*\.q_proj", None])
def test_a_row_scales_inputs(modules: object) -> None:
    held = ia3((1, 3), feedforward_modules=modules)
    shape = IA3.describe(held).shapes[Q]
    assert (shape.in_features, shape.out_features, shape.vectors) == (3, None, frozenset("h"))
    found = lowered(IA3, held)
    np.testing.assert_array_equal(found.h, L)
    assert found.g is None
    assert found.A.shape == (0, 3)
    assert found.B.shape == (0, 0)


@pytest.mark.parametrize(("modules", "vector"), [([], "g"), (["q_proj"], "h")])
@pytest.mark.parametrize("ones", [(1,), (1, 1), (1, 1, 1)])
def test_a_convolution_is_told_by_the_configuration(
    modules: list[str], vector: str, ones: tuple[int, ...]
) -> None:
    held = ia3((1, 3, *ones), feedforward_modules=modules)
    shape = IA3.describe(held).shapes[Q]
    assert (shape.vectors, shape.kernel) == (frozenset(vector), None)
    np.testing.assert_array_equal(getattr(lowered(IA3, held), vector), L)


@given(b=st.lists(st.floats(-8, 8), min_size=3, max_size=3))
def test_a_bias_that_is_not_scaled_is_put_back(b: list[float]) -> None:
    bias = np.array(b)
    base = SmallBase({Q: np.ones((3, 2))}, {Q: bias})
    held = ia3((3, 1), **{IA3_BIAS: "unscaled", "feedforward_modules": []})
    shape = IA3.describe(held).shapes[Q]
    assert (shape.vectors, shape.need) == (frozenset("gc"), Need.SIZES)
    found = lowered(IA3, held, base)
    assert found.g is not None
    # l is a sum of few powers of two, so that l * b + (1 - l) * b is rounded three times
    assert np.abs(found.g * bias + found.c - bias).max() <= 3 * 2.0**-53 * 24


def test_a_field_of_ours_with_another_value_is_refused() -> None:
    with pytest.raises(AdapterError, match="is 'scaled', expected 'unscaled'"):
        IA3.describe(ia3((3, 1), **{IA3_BIAS: "scaled"}))


def test_a_convolution_without_the_configurations_word_is_refused() -> None:
    with pytest.raises(UnsupportedAdapterError, match="feedforward_modules is not given"):
        IA3.describe(ia3((1, 3, 1, 1)))


@pytest.mark.parametrize(
    ("shape", "modules", "message"),
    [
        ((3,), [], r"ia3_l has shape \[3\], expected \[out, 1\], \[1, in\] or"),
        ((3, 1, 1, 1), [], r"ia3_l has shape \[3, 1, 1, 1\], expected"),
        ((1, 1, 3), [], r"ia3_l has shape \[1, 1, 3\], expected"),
        ((3, 1), ["q_proj"], "but feedforward_modules names the module"),
        ((1, 3), [], "but feedforward_modules does not name the module"),
    ],
)
def test_a_vector_of_another_form_is_refused(
    shape: tuple[int, ...], modules: list[str], message: str
) -> None:
    with pytest.raises(AdapterError, match=message):
        IA3.describe(ia3(shape, feedforward_modules=modules))


def test_a_matrix_is_no_vector() -> None:
    held = checkpoint("IA3", of_module({"ia3_l": np.ones((2, 3))}), feedforward_modules=[])
    with pytest.raises(AdapterError, match=r"ia3_l has shape \[2, 3\], expected"):
        IA3.describe(held)


def test_a_text_that_is_no_expression_is_refused() -> None:
    with pytest.raises(AdapterError, match="in feedforward_modules is not a regular expression"):
        IA3.describe(ia3((1, 3), feedforward_modules="("))


def test_beft_adds_its_bias() -> None:
    held = checkpoint("BEFT", of_module({"beft_bias": L[None]}))
    shape = BEFT.describe(held).shapes[Q]
    assert (shape.rank, shape.in_features, shape.out_features, shape.vectors) == (
        0,
        None,
        3,
        frozenset("c"),
    )
    found = lowered(BEFT, held)
    np.testing.assert_array_equal(found.c, L)
    assert (found.g, found.h) == (None, None)


def test_a_beft_bias_of_several_rows_is_refused() -> None:
    held = checkpoint("BEFT", of_module({"beft_bias": np.ones((2, 3))}))
    with pytest.raises(AdapterError, match=r"has shape \[2, 3\], expected \[1, 3\]"):
        BEFT.describe(held)
