"""Products of matrices, against their definitions."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.adapters.maths.algebra import khatri_rao, shortest, whole

sizes = st.integers(1, 5)
seeds = st.integers(0, 2**32 - 1)
# A product of at most 25 terms in double precision, each rounded twice.
TINY = 64 * 2.0**-53


@given(n=sizes, r=sizes, q=sizes, seed=seeds)
def test_a_row_of_a_khatri_rao_product_is_the_kronecker_product_of_the_rows(
    n: int, r: int, q: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    one, other = rng.normal(size=(n, r)), rng.normal(size=(n, q))
    product = khatri_rao(one, other)
    assert product.shape == (n, r * q)
    for row in range(n):
        np.testing.assert_array_equal(product[row], np.kron(one[row], other[row]))


@given(m=sizes, r=st.integers(1, 12), n=sizes, seed=seeds)
def test_the_shortest_product_is_the_same_and_has_no_needless_ranks(
    m: int, r: int, n: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    left, right = rng.normal(size=(m, r)), rng.normal(size=(r, n))
    one, other = shortest(left, right)
    assert one.shape[1] == other.shape[0] == min(r, m, n)
    limit = TINY * (np.abs(left) @ np.abs(right)).max()
    assert np.abs(one @ other - left @ right).max() <= limit


def test_a_product_that_is_short_already_stays_as_it_is() -> None:
    left, right = np.ones((3, 2)), np.ones((2, 4))
    one, other = shortest(left, right)
    assert one is left
    assert other is right


@given(m=sizes, n=sizes, seed=seeds)
def test_a_whole_matrix_is_a_product_with_the_identity(m: int, n: int, seed: int) -> None:
    matrix = np.random.default_rng(seed).normal(size=(m, n))
    left, right = whole(matrix)
    assert left.shape[1] == right.shape[0] == min(m, n)
    # a product with the identity adds zeros to one term
    np.testing.assert_array_equal(left @ right, matrix)
