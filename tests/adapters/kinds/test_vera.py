"""VERA and PVERA against loops over ranks, with the pair in the file and from a seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.adapters.kinds.vera import PveraRule, VeraRule
from lora_quant.adapters.lowered import Need
from lora_quant.adapters.maths.seeded import pvera_projections, vera_projections
from lora_quant.errors import AdapterError, UnsupportedAdapterError
from tests.adapters.kinds.held import (
    CONFIG,
    Array,
    Q,
    SmallBase,
    checkpoint,
    lowered,
    of_module,
    update,
)

VERA, PVERA = VeraRule(), PveraRule()
sizes = st.integers(1, 6)
# Sums of at most 6 products of four in double precision; normal values stay below 8.
TINY = 6 * 4 * 2.0**-53 * 8**4


def vera(rank: int, out: int, pair: tuple[int, int], seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "base_model.vera_A": rng.normal(size=(rank, pair[0])),
        "base_model.vera_B": rng.normal(size=(pair[1], rank)),
        **of_module(
            {"vera_lambda_d": rng.normal(size=rank), "vera_lambda_b": rng.normal(size=out)}
        ),
    }


@given(out=sizes, inputs=sizes, rank=sizes, more=st.integers(0, 3), seed=st.integers(0, 2**32 - 1))
def test_the_update_is_a_sum_over_ranks(
    out: int, inputs: int, rank: int, more: int, seed: int
) -> None:
    tensors = vera(rank, out, (inputs + more, out + more), seed)
    base = SmallBase({Q: np.zeros((out, inputs))})
    found = lowered(VERA, checkpoint("VERA", tensors, r=rank), base)
    A, B, d, b = tensors.values()
    expected = np.zeros((out, inputs))
    for k in range(rank):
        expected += d[k] * np.outer(b * B[:out, k], A[k, :inputs])
    assert np.abs(update(found) - expected).max() <= TINY
    np.testing.assert_array_equal(found.s, d)
    np.testing.assert_array_equal(found.A, A[:, :inputs])


def test_the_file_does_not_tell_the_inputs() -> None:
    shape = VERA.describe(checkpoint("VERA", vera(2, 3, (5, 4)), r=2)).shapes[Q]
    assert (shape.rank, shape.in_features, shape.out_features) == (2, None, 3)
    assert shape.need is Need.SIZES


@pytest.mark.parametrize("kind", ["VERA", "PVERA"])
def test_a_pair_from_a_seed_is_made_for_the_largest_of_all_modules(kind: str) -> None:
    prefix, rows, rule, make = {
        "VERA": ("vera", 2, VERA, vera_projections),
        "PVERA": ("pvera", 4, PVERA, pvera_projections),
    }[kind]
    other = "layers.1.q_proj"
    tensors: dict[str, Array] = {}
    for module, out in ((Q, 3), (other, 5)):
        vectors = {f"{prefix}_lambda_d": np.ones(rows), f"{prefix}_lambda_b": np.ones(out)}
        tensors |= of_module(vectors, module)
    base = SmallBase({Q: np.zeros((3, 7)), other: np.zeros((5, 4))})
    held = checkpoint(kind, tensors, r=2, save_projection=False, projection_prng_key=11)
    A, B = make(11, 2, 7, 5)
    for module, (out, inputs) in ((Q, (3, 7)), (other, (5, 4))):
        found = lowered(rule, held, base, module)
        np.testing.assert_array_equal(found.A, A[:2, :inputs])
        np.testing.assert_array_equal(found.B, B[:out])


def test_the_mean_of_pvera_is_made_of_the_first_halves() -> None:
    rng = np.random.default_rng(3)
    A, B, d = rng.normal(size=(4, 5)), rng.normal(size=(6, 2)), rng.normal(size=4)
    tensors = {"base_model.pvera_A": A, "base_model.pvera_B": B}
    tensors |= of_module({"pvera_lambda_d": d, "pvera_lambda_b": np.full(3, 2.0)})
    found = lowered(PVERA, checkpoint("PVERA", tensors, r=2), SmallBase({Q: np.zeros((3, 5))}))
    expected = 2.0 * (B[:3] @ np.diag(d[:2]) @ A[:2])
    assert np.abs(update(found) - expected).max() <= TINY


def test_sampling_is_refused() -> None:
    held = checkpoint("PVERA", {}, r=2, sample_at_inference=True)
    with pytest.raises(UnsupportedAdapterError, match="random activations for every input"):
        PVERA.describe(held)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"base_model.vera_A": (3, 5)},
            r"vera_A has 3 rows and vera_B is \[4, 2\], expected 2 rows, and 2 columns with at "
            "least 3 rows",
        ),
        ({"base_model.vera_B": (2, 2)}, r"vera_B is \[2, 2\]"),
        ({f"{Q}.vera_lambda_d": (2, 1)}, r"has shape \[2, 1\], expected 1 axes"),
        ({f"{Q}.vera_lambda_d": (3,)}, "has rank 3 in the weights, expected 2 from the config"),
    ],
)
def test_tensors_that_contradict_each_other_are_refused(
    changed: dict[str, tuple[int, ...]], message: str
) -> None:
    tensors = vera(2, 3, (5, 4)) | {name: np.ones(shape) for name, shape in changed.items()}
    with pytest.raises(AdapterError, match=message) as caught:
        VERA.describe(checkpoint("VERA", tensors, r=2))
    assert caught.value.where.module == Q


@pytest.mark.parametrize("fields", [{}, {"save_projection": True}])
def test_a_missing_pair_is_not_taken_from_the_seed_unasked(fields: dict[str, Any]) -> None:
    tensors = of_module({"vera_lambda_d": np.ones(2), "vera_lambda_b": np.ones(3)})
    with pytest.raises(
        AdapterError, match="save_projection is true, but the file has no vera_A"
    ) as caught:
        VERA.describe(checkpoint("VERA", tensors, r=2, **fields))
    assert caught.value.where.file == CONFIG
    assert caught.value.where.field == "save_projection"


def test_a_base_that_is_too_wide_is_refused() -> None:
    held = checkpoint("VERA", vera(2, 3, (5, 4)), r=2)
    shape = VERA.describe(held).shapes[Q]
    with pytest.raises(AdapterError, match="the shared A has 5 columns, expected at least 9"):
        VERA.lower(held, shape, SmallBase({Q: np.zeros((3, 9))}))
