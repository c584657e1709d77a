"""SHIRA and SUPERTUNING against loops over entries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_quant.adapters.kinds.sparse import ShiraRule, SupertuningRule
from lora_quant.adapters.lowered import Need
from lora_quant.errors import AdapterError, UnsupportedAdapterError
from tests.adapters.kinds.held import Array, Q, SmallBase, checkpoint, dense, of_module
from tests.adapters.kinds.saved import saved

SHIRA, SUPER = ShiraRule(), SupertuningRule()
BASE = SmallBase({Q: np.zeros((2, 3))})


def shira(indices: Array, values: Array | None = None) -> dict[str, Array]:
    values = np.arange(1.0, 6.0) if values is None else values
    return of_module({"shira_weight": values, "shira_indices": indices})


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_shira_puts_each_value_in_its_place(tmp_path: Path, dtype: type) -> None:
    indices: Array = np.array([[0, 0, 1, 1, 1], [0, 2, 0, 1, 1]], dtype)
    found = dense(SHIRA, saved(tmp_path, "SHIRA", shira(indices), r=1), BASE)
    np.testing.assert_array_equal(found.delta, [[1, 0, 2], [3, 4 + 5, 0]])
    assert (
        SHIRA.describe(saved(tmp_path, "SHIRA", shira(indices), r=1)).shapes[Q].need is Need.SIZES
    )


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([[0, 0, 1, 1, 2], [0, 2, 0, 1, 1]], r"row 2 or column 2, expected .* weight of \[2, 3\]"),
        ([[0, 0, 1, 1, 1], [0, 2, 0, 1, 3]], "1 of 10 indices are out of range, the first is 3"),
        ([[0, 0, 1, 1, -1], [0, 2, 0, 1, 1]], "the first is -1; expected 0 to 2"),
    ],
)
def test_places_outside_the_weight_are_refused(
    tmp_path: Path, indices: list[list[int]], message: str
) -> None:
    held = saved(tmp_path, "SHIRA", shira(np.array(indices, np.int32)), r=1)
    with pytest.raises(AdapterError, match=message):
        dense(SHIRA, held, BASE)


def test_shira_shapes_are_held_against_each_other(tmp_path: Path) -> None:
    indices = np.zeros((2, 4), np.int32)
    with pytest.raises(AdapterError, match=r"has shape \[2, 4\], expected \[2, 5\] from shira_w"):
        SHIRA.describe(saved(tmp_path, "SHIRA", shira(indices), r=1))
    held = saved(tmp_path, "SHIRA", shira(np.zeros((2, 5), np.int32)), r=2)
    with pytest.raises(AdapterError, match="5 values, expected a multiple of r = 2"):
        SHIRA.describe(held)
    held = saved(tmp_path, "SHIRA", shira(np.zeros((2, 5), np.int32)), r=1)
    with pytest.raises(AdapterError, match=r"expected r \(in \+ out\) = 6 for the base's module"):
        dense(SHIRA, held, SmallBase({Q: np.zeros((2, 4))}))


@given(
    out=st.integers(1, 6),
    inputs=st.integers(1, 6),
    sparsity=st.floats(0, 1),
    select_top=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_places_that_are_not_saved_are_those_of_the_largest_or_smallest_weights(
    out: int, inputs: int, sparsity: float, select_top: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(out, inputs)).astype(np.float32)
    count = int(out * inputs * (1 - sparsity))
    if not count:
        return
    values = rng.normal(size=count)
    fields = {"save_precomputed_indices": False, "sparsity": sparsity, "select_top": select_top}
    held = checkpoint("SUPERTUNING", of_module({"supertuning_values": values}), **fields)
    order = sorted(np.ndindex(out, inputs), key=lambda at: abs(float(weight[at])))
    if select_top:
        order.reverse()
    expected = np.zeros((out, inputs))
    for at, value in zip(order, values, strict=False):
        expected[at] = value
    found = dense(SUPER, held, SmallBase({Q: weight}))
    np.testing.assert_array_equal(found.delta, expected)


@pytest.mark.parametrize("select_top", [True, False])
@pytest.mark.parametrize("weight", [[1, 2, 3, 4, 4, 4], [1, 1, 1, 2, 3, 4], [3, 1, 2, 2, 4, 1]])
def test_equal_weights_among_the_selected_ones_are_refused(
    weight: list[float], select_top: bool
) -> None:
    fields = {"save_precomputed_indices": False, "sparsity": 0.5, "select_top": select_top}
    held = checkpoint("SUPERTUNING", of_module({"supertuning_values": np.ones(3)}), **fields)
    base = SmallBase({Q: np.array(weight).reshape(2, 3)})
    ordered = sorted(weight, reverse=select_top)[:4]
    if len(set(ordered)) == 4:
        dense(SUPER, held, base)
    else:
        with pytest.raises(UnsupportedAdapterError, match="of the 3 selected weights are as large"):
            dense(SUPER, held, base)


def test_a_lora_beside_the_entries_is_added(tmp_path: Path) -> None:
    A, B = np.array([[1.0, 2, 3]]), np.array([[4.0], [5.0]])
    tensors = of_module(
        {
            "supertuning_values": np.array([10.0, 20.0]),
            "supertuning_indices": np.array([1, 5], np.int32),
            "supertuning_lora_A.weight": A,
            "supertuning_lora_B.weight": B,
        }
    )
    fields = {"sparsity": 0.6, "r": 1, "lora_alpha": 2}
    held = saved(tmp_path, "SUPERTUNING", tensors, **fields)
    shape = SUPER.describe(held).shapes[Q]
    assert (shape.in_features, shape.out_features, shape.need) == (3, 2, Need.SIZES)
    found = dense(SUPER, held, BASE)
    np.testing.assert_array_equal(found.delta, [[8, 26, 24], [10, 20, 50]])


@pytest.mark.parametrize(
    ("changed", "fields", "message"),
    [
        ({}, {"r": None}, "has supertuning_lora_A.weight, but the configuration has no r"),
        ({"supertuning_lora_A.weight": (2, 3)}, {}, r"lora_B.weight has shape \[2, 1\], expected"),
        ({}, {"r": 3}, "supertuning_lora_A.weight has 1 rows, expected r = 3"),
        ({"supertuning_values": (3,)}, {}, r"supertuning_indices has shape \[2\], expected \[3\]"),
        ({"supertuning_indices": None}, {}, "has no supertuning_indices, and save_precomputed"),
    ],
)
def test_supertuning_shapes_are_held_against_each_other(
    tmp_path: Path,
    changed: dict[str, tuple[int, ...] | None],
    fields: dict[str, Any],
    message: str,
) -> None:
    made: dict[str, Array] = {
        "supertuning_values": np.ones(2),
        "supertuning_indices": np.zeros(2, np.int32),
        "supertuning_lora_A.weight": np.ones((1, 3)),
        "supertuning_lora_B.weight": np.ones((2, 1)),
    }
    for name, shape in changed.items():
        if shape is None:
            del made[name]
        else:
            made[name] = np.ones(shape)
    held = saved(tmp_path, "SUPERTUNING", of_module(made), **({"r": 1, "lora_alpha": 1} | fields))
    with pytest.raises(AdapterError, match=message) as caught:
        SUPER.describe(held)
    assert caught.value.where.module == Q


def test_a_base_of_another_size_is_refused() -> None:
    fields = {"save_precomputed_indices": False, "sparsity": 0.5}
    held = checkpoint("SUPERTUNING", of_module({"supertuning_values": np.ones(3)}), **fields)
    with pytest.raises(AdapterError, match="has 3 values, expected 6 from the sparsity and the"):
        dense(SUPER, held, SmallBase({Q: np.ones((3, 4))}))
