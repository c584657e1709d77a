"""RANDLORA against loops over bases and ranks, with both orientations of the weight."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.adapters.kinds.randlora import RandloraRule
from lora_quant.adapters.lowered import Need
from lora_quant.adapters.maths.seeded import randlora_projections
from lora_quant.errors import AdapterError
from tests.adapters.kinds.held import Array, Q, SmallBase, checkpoint, lowered, of_module, update

RULE = RandloraRule()
sizes = st.integers(1, 6)
# Sums of at most 8 * 3 products of five in double precision; normal values stay below 8.
TINY = 24 * 5 * 2.0**-53 * 8**5


def tensors(rank: int, smaller: int, larger: int, more: int = 0, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    bases = -(-smaller // rank)
    return {
        "base_model.randlora_A": rng.normal(size=(rank, 1, smaller + more)),
        "base_model.randlora_B": rng.normal(size=(larger + more, bases + more, rank)),
        **of_module(
            {
                "randlora_lambda": rng.normal(size=(rank, bases)),
                "randlora_gamma": rng.normal(size=(bases, smaller)),
            }
        ),
    }


@given(
    out=sizes, inputs=sizes, rank=st.integers(1, 4), more=st.integers(0, 2), seed=st.integers(0, 99)
)
def test_the_update_pairs_rows_and_columns_in_the_order_of_peft(
    out: int, inputs: int, rank: int, more: int, seed: int
) -> None:
    smaller, larger = sorted((out, inputs))
    made = tensors(rank, smaller, larger, more, seed)
    held = checkpoint("RANDLORA", made, r=rank, randlora_alpha=5)
    found = lowered(RULE, held, SmallBase({Q: np.zeros((out, inputs))}))
    A, B, weights, gamma = made.values()
    bases = range(len(gamma))
    rows = [weights[r, n] * gamma[n] * A[r, 0, :smaller] for r in range(rank) for n in bases]
    columns = [B[:larger, n, r] for n in bases for r in range(rank)]
    expected = np.array(columns).T @ np.array(rows) * 5 / rank
    expected = expected if smaller == inputs else expected.T
    assert np.abs(update(found) - expected).max() <= 5 * TINY
    np.testing.assert_array_equal(found.s, 5 / rank * weights.reshape(-1))


def test_the_rank_is_that_of_all_bases_together() -> None:
    shape = RULE.describe(checkpoint("RANDLORA", tensors(3, 7, 9), r=3)).shapes[Q]
    assert (shape.rank, shape.in_features, shape.out_features) == (9, None, None)
    assert shape.need is Need.SIZES
    assert shape.scale == 640 / 3


@pytest.mark.parametrize(
    ("fields", "sparsity"), [({}, None), ({"sparse": True}, 3.0), ({"very_sparse": True}, 2.0)]
)
def test_bases_from_a_seed_are_made_for_the_largest_of_all_modules(
    fields: dict[str, bool], sparsity: float | None
) -> None:
    other = "layers.1.q_proj"
    made: dict[str, Array] = {}
    for module, smaller in ((Q, 4), (other, 3)):
        vectors = {"randlora_lambda": np.ones((2, 2)), "randlora_gamma": np.ones((2, smaller))}
        made |= of_module(vectors, module)
    base = SmallBase({Q: np.zeros((4, 5)), other: np.zeros((3, 4))})
    held = checkpoint("RANDLORA", made, r=2, save_projection=False, **fields)
    A, B = randlora_projections(0, 2, 5, 4, sparsity=sparsity)
    found = lowered(RULE, held, base, other)
    np.testing.assert_array_equal(found.B, np.repeat(A[:, 0, :3], 2, axis=0).T)
    np.testing.assert_array_equal(found.A, B[:4].reshape(4, -1).T)
    rules = [finding.rule for finding in RULE.describe(held).findings]
    assert ("adapter/seeded-bfloat16" in rules) == (sparsity is None)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({f"{Q}.randlora_gamma": (3, 4)}, r"gamma has shape \[3, 4\], expected \[2, 4\]"),
        ({f"{Q}.randlora_gamma": (2, 6)}, "2 bases of rank 2, expected 3 for the 6 columns"),
        ({"base_model.randlora_A": (2, 1, 3)}, r"randlora_A is \[2, 1, 3\]"),
        ({"base_model.randlora_B": (5, 1, 2)}, r"randlora_B has \[1, 2\] beside its rows"),
        ({f"{Q}.randlora_lambda": (4, 2)}, "has rank 4 in the weights, expected 2"),
    ],
)
def test_tensors_that_contradict_each_other_are_refused(
    changed: dict[str, tuple[int, ...]], message: str
) -> None:
    made = tensors(2, 4, 5) | {name: np.ones(shape) for name, shape in changed.items()}
    with pytest.raises(AdapterError, match=message) as caught:
        RULE.describe(checkpoint("RANDLORA", made, r=2))
    assert caught.value.where.module == Q


@pytest.mark.parametrize("shape", [(3, 5), (4, 6)])
def test_a_base_of_other_sizes_is_refused(shape: tuple[int, int]) -> None:
    held = checkpoint("RANDLORA", tensors(2, 4, 5), r=2)
    message = f"has {shape[1]} inputs and {shape[0]} outputs, expected 4 for the smaller and at mos"
    with pytest.raises(AdapterError, match=message):
        RULE.lower(held, RULE.describe(held).shapes[Q], SmallBase({Q: np.zeros(shape)}))


def with_copies(**changed: Array) -> dict[str, Array]:
    made = tensors(2, 4, 5)
    copies = {name: made[f"base_model.{name}"] for name in ("randlora_A", "randlora_B")}
    return made | of_module(copies | changed)


def test_a_modules_copy_of_the_shared_pair_changes_nothing() -> None:
    base = SmallBase({Q: np.zeros((5, 4))})
    found = lowered(RULE, checkpoint("RANDLORA", with_copies(), r=2), base)
    shared = lowered(RULE, checkpoint("RANDLORA", tensors(2, 4, 5), r=2), base)
    np.testing.assert_array_equal(found.A, shared.A)
    np.testing.assert_array_equal(found.B, shared.B)


@pytest.mark.parametrize("name", ["randlora_A", "randlora_B"])
def test_a_modules_copy_that_differs_from_the_shared_pair_is_refused(name: str) -> None:
    same = tensors(2, 4, 5)[f"base_model.{name}"]
    base = SmallBase({Q: np.zeros((5, 4))})
    changed = same.copy()
    changed.flat[-1] += 1
    held = checkpoint("RANDLORA", with_copies(**{name: changed}), r=2)
    with pytest.raises(AdapterError, match=f"values of the module's {name} are not those") as one:
        lowered(RULE, held, base)
    assert one.value.where.module == Q
    longer = np.concatenate([same, same], axis=2 if name == "randlora_A" else 0)
    for copy, message in ((same.astype(np.float32), "is F32 "), (longer, "is F64 ")):
        held = checkpoint("RANDLORA", with_copies(**{name: copy}), r=2)
        with pytest.raises(AdapterError, match=f"{name} {message}.*expected the one that the mod"):
            RULE.describe(held)
