"""FROD against its decomposition written out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_quant.adapters.kinds.frod import FrodRule, role
from lora_quant.errors import AdapterError, UnsupportedAdapterError
from tests.adapters.kinds.held import Array, SmallBase, dense, of_module
from tests.adapters.kinds.saved import saved

RULE = FrodRule()
NAME = "layers.0.attn.q_proj"


def tensors(inputs: int = 4) -> dict[str, Array]:
    rng = np.random.default_rng(3)
    return {
        "base_model.frod_V.attn_q_proj": rng.normal(size=(inputs, inputs)),
        "base_model.frod_s_indices.attn_q_proj": np.array([[0, 3, 1], [2, 0, 1]]),
        "base_model.frod_s_size.attn_q_proj": np.array([inputs, inputs]),
        **of_module(
            {
                "frod_lambda_l": rng.normal(size=inputs),
                "frod_lambda_s_values": rng.normal(size=3),
            },
            NAME,
        ),
    }


def described(folder: Path, made: dict[str, Array], **fields: Any) -> None:
    RULE.describe(saved(folder, "FROD", made, **fields))


def test_the_core_of_the_weight_is_replaced(tmp_path: Path) -> None:
    made = tensors()
    weight = np.random.default_rng(4).normal(size=(3, 4))
    V, places, _, lambdas, values = made.values()
    turned = weight @ np.linalg.inv(V).T
    U = turned / np.sqrt(np.sum(turned**2, axis=0))
    expected = np.zeros((3, 4))
    for j in range(4):
        expected += lambdas[j] * np.outer(U[:, j], V[:, j])
    for value, row, column in zip(values, *places, strict=True):
        expected += value * np.outer(U[:, row], V[:, column])
    found = dense(RULE, saved(tmp_path, "FROD", made), SmallBase({NAME: weight}), NAME)
    # sums of 7 products of values below 8; the inverse of V loses its condition, 2**10 here
    assert np.linalg.cond(V) <= 2**10
    assert np.abs(weight + found.delta - expected).max() <= 7 * 3 * 2.0**-53 * 8**3 * 2**10


def test_a_direction_that_the_weight_does_not_have_stays_zero(tmp_path: Path) -> None:
    made = tensors() | {"base_model.frod_V.attn_q_proj": np.eye(4)}
    weight = np.zeros((3, 4))
    weight[0, 0] = 2.0
    found = dense(RULE, saved(tmp_path, "FROD", made), SmallBase({NAME: weight}), NAME)
    lambdas, values = made[f"{NAME}.frod_lambda_l"], made[f"{NAME}.frod_lambda_s_values"]
    expected = np.zeros((3, 4))
    expected[0, 0], expected[0, 2] = lambdas[0], values[0]
    np.testing.assert_array_equal(found.delta, expected - weight)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("model.layers.3.self_attn.q_proj", "self_attn_q_proj"),
        ("encoder.layer.11.attention.output.dense", "attention_output"),
        ("encoder.layer.11.output.dense", "output_dense"),
        ("h.3", "h_3"),
        ("h.3.fc", "fc"),
        ("lin", "lin"),
    ],
)
def test_modules_share_their_basis_by_role(module: str, expected: str) -> None:
    assert role(module) == expected


def without(made: dict[str, Array], part: str) -> dict[str, Array]:
    return {name: array for name, array in made.items() if part not in name}


def test_a_basis_that_is_not_saved_is_refused(tmp_path: Path) -> None:
    made = without(without(tensors(), "frod_V"), "frod_s_")
    with pytest.raises(UnsupportedAdapterError, match="up to signs that depend on the machine"):
        described(tmp_path, made, save_projection=False)
    with pytest.raises(AdapterError, match="save_projection is true, but the file has no frod_V"):
        described(tmp_path, made)


def test_a_rounded_basis_is_refused(tmp_path: Path) -> None:
    name = "base_model.frod_V.attn_q_proj"
    made = tensors()
    described(tmp_path, made | {name: made[name].astype(np.float32)})
    message = "frod_V.attn_q_proj is F16, expected F32 or F64: PEFT makes U with the basis"
    with pytest.raises(UnsupportedAdapterError, match=message) as caught:
        described(tmp_path, made | {name: made[name].astype(np.float16)})
    assert (caught.value.where.module, caught.value.where.tensor) == (NAME, name)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"base_model.frod_V.attn_q_proj": np.ones((4, 3))}, r"\[4, 3\], expected \[4, 4\] from"),
        ({"base_model.frod_V.attn_q_proj": np.ones((4, 4))}, "has no inverse, expected one"),
        (
            {f"{NAME}.frod_lambda_s_values": np.ones(2)},
            r"frod_s_indices.attn_q_proj has shape \[2, 3\], expected \[2, 2\]",
        ),
        (
            {"base_model.frod_s_indices.attn_q_proj": np.array([[0, 4, 1], [2, 0, 1]])},
            "1 of 6 indices are out of range, the first is 4; expected 0 to 3",
        ),
    ],
)
def test_tensors_that_contradict_each_other_are_refused(
    tmp_path: Path, changed: dict[str, Array], message: str
) -> None:
    held = saved(tmp_path, "FROD", tensors() | changed)
    with pytest.raises(AdapterError, match=message) as caught:
        dense(RULE, held, SmallBase({NAME: np.ones((3, 4))}), NAME)
    assert caught.value.where.module == NAME


def test_missing_places_are_refused(tmp_path: Path) -> None:
    held = saved(tmp_path, "FROD", without(tensors(), "frod_s_indices"))
    with pytest.raises(AdapterError, match="the file has no frod_s_indices"):
        dense(RULE, held, SmallBase({NAME: np.ones((3, 4))}), NAME)


def test_a_base_of_another_width_is_refused(tmp_path: Path) -> None:
    held = saved(tmp_path, "FROD", tensors())
    with pytest.raises(AdapterError, match="the base's weight has 5 columns, expected 4"):
        dense(RULE, held, SmallBase({NAME: np.ones((3, 5))}), NAME)
