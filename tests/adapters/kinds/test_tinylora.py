"""TINYLORA against a loop over its vector, with every module's number in the model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.adapters.base_modules import BaseSizes
from lora_quant.adapters.kinds.tinylora import TinyloraRule
from lora_quant.adapters.maths.seeded import tinylora_projection
from lora_quant.errors import AdapterError, UnsupportedAdapterError
from tests.adapters.kinds.held import Array, Q, SmallBase, checkpoint, lowered, of_module, update

RULE = TinyloraRule()
# The order of the model, which is not the order of the names.
NAMES = ("z.q_proj", "a.q_proj", "m.q_proj", "b.q_proj")
# Sums of at most 2 * 2 * 3 products of four in double precision; normal values stay below 8.
TINY = 12 * 4 * 2.0**-53 * 8**4


def model(groups: int, *, has_projection: bool = True) -> dict[str, Array]:
    rng = np.random.default_rng(4)
    made: dict[str, Array] = {
        f"base_model.tinylora_v.{n}": rng.normal(size=3) for n in range(groups)
    }
    for name in NAMES:
        of = {"tinylora_A": rng.normal(size=(2, 5)), "tinylora_B": rng.normal(size=(4, 2))}
        if has_projection:
            of["tinylora_P"] = rng.normal(size=(3, 2, 2))
        made |= of_module(of, name)
    return made


BASE = SmallBase({name: np.zeros((4, 5)) for name in ("other", *NAMES)})


@pytest.mark.parametrize(
    ("tying", "groups", "expected"),
    [
        (0.0, 4, (0, 1, 2, 3)),
        (0.5, 2, (0, 0, 1, 1)),
        (1.0, 1, (0, 0, 0, 0)),
        (0.25, 3, (0, 1, 2, 2)),
    ],
)
@pytest.mark.parametrize("has_projection", [True, False])
def test_neighbours_in_the_model_share_a_vector(
    tying: float, groups: int, expected: tuple[int, ...], has_projection: bool
) -> None:
    made = model(groups, has_projection=has_projection)
    fields = {"weight_tying": tying, "save_projection": has_projection, "projection_seed": 9}
    held = checkpoint("TINYLORA", made, r=2, u=3, **fields)
    for number, (name, group) in enumerate(zip(NAMES, expected, strict=True)):
        v = made[f"base_model.tinylora_v.{group}"]
        P = made.get(f"{name}.tinylora_P", tinylora_projection(9, number, 3, 2))
        R = np.zeros((2, 2))
        for i in range(3):
            R += v[i] * P[i]
        delta = made[f"{name}.tinylora_B"] @ R @ made[f"{name}.tinylora_A"]
        assert np.abs(update(lowered(RULE, held, BASE, name)) - delta).max() <= TINY


@given(rank=st.integers(1, 8), out=st.integers(1, 5), inputs=st.integers(1, 5))
def test_a_rank_is_cut_to_the_smaller_side_of_the_weight(rank: int, out: int, inputs: int) -> None:
    kept = min(rank, out, inputs)
    of = {"tinylora_A": np.ones((kept, inputs)), "tinylora_B": np.ones((out, kept))}
    made = {"base_model.tinylora_v.0": np.ones(3)} | of_module(of)
    held = checkpoint("TINYLORA", made, r=rank, u=3, save_projection=False)
    assert RULE.describe(held).shapes[Q].rank == kept


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({f"{Q}.tinylora_B": (4, 3)}, r"tinylora_B has shape \[4, 3\], expected \[4, 2\]"),
        ({f"{Q}.tinylora_P": (3, 2, 3)}, r"tinylora_P has shape .* expected \[3, 2, 2\]"),
        ({"base_model.tinylora_v.0": (4,)}, "tinylora_v.0 has 4 values, expected 3"),
        (
            {f"{Q}.tinylora_A": (1, 5), f"{Q}.tinylora_B": (4, 1)},
            "has rank 1 in the weights, expected 2",
        ),
    ],
)
def test_tensors_that_contradict_each_other_are_refused(
    changed: dict[str, tuple[int, ...]], message: str
) -> None:
    shapes: dict[str, tuple[int, ...]] = {
        "base_model.tinylora_v.0": (3,),
        f"{Q}.tinylora_A": (2, 5),
        f"{Q}.tinylora_B": (4, 2),
        f"{Q}.tinylora_P": (3, 2, 2),
    }
    made = {name: np.ones(shape) for name, shape in (shapes | changed).items()}
    with pytest.raises(AdapterError, match=message) as caught:
        RULE.describe(checkpoint("TINYLORA", made, r=2, u=3))
    assert caught.value.where.module == Q


def test_a_missing_vector_is_named() -> None:
    held = checkpoint("TINYLORA", model(3), r=2, u=3)
    with pytest.raises(AdapterError, match=r"the file has no tinylora_v.3, which 4 modules"):
        lowered(RULE, held, BASE, NAMES[3])


def test_a_model_without_a_module_is_refused() -> None:
    held = checkpoint("TINYLORA", model(4), r=2, u=3)
    base = SmallBase({name: np.zeros((4, 5)) for name in NAMES[:2]})
    with pytest.raises(
        AdapterError, match=r"does not have 'b\.q_proj', and 2 of 4 adapted modules"
    ):
        lowered(RULE, held, base, NAMES[0])


def test_an_embedding_is_refused() -> None:
    class Embeddings(SmallBase):
        def sizes(self, module: str) -> BaseSizes:
            return BaseSizes(5, 4, is_embedding=True)

    held = checkpoint("TINYLORA", model(4), r=2, u=3)
    with pytest.raises(UnsupportedAdapterError, match="on an embedding is not implemented"):
        lowered(RULE, held, Embeddings(BASE.weights), NAMES[0])
