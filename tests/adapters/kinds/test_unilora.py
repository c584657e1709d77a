"""UNILORA: entries by their indices, and files that do not name their modules."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lora_quant.adapters.kinds.unilora import UniloraRule
from lora_quant.errors import AdapterError, UnsupportedAdapterError
from tests.adapters.kinds.held import CONFIG, Array, checkpoint, lowered, of_module
from tests.adapters.kinds.saved import saved

RULE = UniloraRule()


def tensors(indices: Array, theta: int = 4) -> dict[str, Array]:
    """Three inputs, two outputs, rank 1; `indices` are those of A, then of B."""
    return {
        "base_model.unilora_theta_d": np.arange(1.0, theta + 1),
        **of_module(
            {
                "unilora_indices_A": indices[:3].reshape(1, 3),
                "unilora_indices_B": indices[3:].reshape(2, 1),
                "unilora_scales_A": np.array([[0.5, 0.25, 1.0]]),
                "unilora_scales_B": np.array([[2.0], [1.0]]),
            }
        ),
    }


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, np.float32])
def test_every_entry_is_a_shared_number_times_its_scale(tmp_path: Path, dtype: type) -> None:
    made = tensors(np.array([3, 0, 0, 2, 1], dtype))
    found = lowered(RULE, saved(tmp_path, "UNILORA", made, r=1, theta_d_length=4))
    np.testing.assert_array_equal(found.A, [[2.0, 0.25, 1.0]])
    np.testing.assert_array_equal(found.B, [[6.0], [2.0]])
    np.testing.assert_array_equal(found.s, [1.0])


def test_a_file_that_names_no_module_is_refused_with_the_way_out() -> None:
    held = checkpoint("UNILORA", {"base_model.unilora_theta_d": np.ones(4)}, theta_d_length=4)
    with pytest.raises(UnsupportedAdapterError) as caught:
        RULE.describe(held)
    assert caught.value.message == (
        "the file holds unilora_theta_d alone: which modules it adapts, and with which indices, "
        "follows only from the model that was trained"
    )
    assert caught.value.where.file == CONFIG
    assert caught.value.hint is not None
    assert "set save_indices to true" in caught.value.hint


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (np.array([3, 0, 4, 2, 1]), "1 of 3 indices are out of range, the first is 4; expected 0"),
        (np.array([3, 0, -1, 2, 1]), "the first is -1; expected 0 to 3"),
        (np.array([3.5, 0, 0, 2, 1]), "numbers that are not whole"),
    ],
)
def test_indices_outside_theta_are_refused(tmp_path: Path, indices: Array, message: str) -> None:
    held = saved(tmp_path, "UNILORA", tensors(indices), r=1, theta_d_length=4)
    with pytest.raises(AdapterError, match=message):
        lowered(RULE, held)


def test_shapes_are_held_against_each_other_and_the_configuration(tmp_path: Path) -> None:
    made = tensors(np.zeros(5, np.int64))
    name = next(name for name in made if name.endswith("scales_B"))
    held = saved(tmp_path, "UNILORA", made | {name: np.ones((3, 1))}, r=1, theta_d_length=4)
    with pytest.raises(AdapterError, match=r"scales_B has shape \[3, 1\], expected \[2, 1\]"):
        RULE.describe(held)
    held = saved(tmp_path, "UNILORA", made, r=1, theta_d_length=5)
    with pytest.raises(AdapterError, match="has 4 values, expected theta_d_length = 5"):
        RULE.describe(held)
    held = saved(tmp_path, "UNILORA", made, r=2, theta_d_length=4)
    with pytest.raises(AdapterError, match="has rank 1 in the weights, expected 2"):
        RULE.describe(held)


def test_indices_must_be_numbers(tmp_path: Path) -> None:
    made = tensors(np.array([True, False, True, False, True]))
    held = saved(tmp_path, "UNILORA", made, r=1, theta_d_length=4)
    with pytest.raises(UnsupportedAdapterError, match="the tensor is BOOL, expected whole numbers"):
        RULE.describe(held)
