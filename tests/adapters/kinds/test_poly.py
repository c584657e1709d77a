"""POLY: the mix of the skills for one task, and the choice of the task."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lora_quant.adapters.frame.tasks import TaskRule
from lora_quant.adapters.kinds.poly import PolyRule
from lora_quant.errors import AdapterError, UnsupportedAdapterError
from tests.adapters.kinds.held import Q, checkpoint, lowered, of_module, update

Array = NDArray[Any]
RULE = PolyRule()


def made(
    splits: int, skills: int, part: int, out: int, rank: int, tasks: int = 3
) -> dict[str, Array]:
    rng = np.random.default_rng([splits, skills, part, out])
    return {
        "poly_lora_A": rng.normal(size=(splits, skills, part, rank)),
        "poly_lora_B": rng.normal(size=(splits, skills, rank, out)),
        "poly_router.module_logits": 3 * rng.normal(size=(tasks, splits * skills)),
    }


@given(
    splits=st.integers(1, 3),
    skills=st.integers(1, 3),
    part=st.integers(1, 3),
    out=st.integers(1, 3),
    rank=st.integers(1, 2),
    task=st.integers(0, 2),
)
def test_the_update_is_the_mix_of_the_skills(
    splits: int, skills: int, part: int, out: int, rank: int, task: int
) -> None:
    tensors = made(splits, skills, part, out, rank)
    fields = {"r": rank, "n_splits": splits, "n_skills": skills, "n_tasks": 3, "task_id": task}
    found = lowered(RULE, checkpoint("POLY", of_module(tensors), **fields))
    A, B = np.zeros((rank, splits * part)), np.zeros((splits * out, rank))
    for split in range(splits):
        logits = tensors["poly_router.module_logits"][task, split * skills : (split + 1) * skills]
        shares = [1 / (1 + np.exp(-logit)) for logit in logits]
        for skill, share in enumerate(shares):
            mix = share / (sum(shares) + 1e-12)
            a, b = tensors["poly_lora_A"][split, skill], tensors["poly_lora_B"][split, skill]
            A[:, split * part : (split + 1) * part] += mix * a.T
            B[split * out : (split + 1) * out] += mix * b.T
    # products of mixes of normal values, at most 8 in size; 1 + tanh loses digits of a small share:
    # logits stay above -15, where it is above 3e-7
    assert np.abs(update(found) - B @ A / rank).max() <= 64 * 16 * 2.0**-53 / 3e-7


@pytest.mark.parametrize("task", [-1, 3, True, "1", 1.0])
def test_a_task_that_is_not_there_is_refused(task: object) -> None:
    tensors = of_module(made(1, 2, 3, 3, 2))
    held = checkpoint("POLY", tensors, r=2, n_skills=2, n_tasks=3, task_id=task)
    with pytest.raises(AdapterError, match="expected a whole number from 0 to 2") as caught:
        RULE.describe(held)
    assert "with task_id in lora_config.yaml, or with --task" in (caught.value.hint or "")
    assert caught.value.where.field is None


def test_several_tasks_ask_for_a_choice() -> None:
    held = checkpoint("POLY", of_module(made(1, 2, 3, 3, 2)), r=2, n_skills=2, n_tasks=3)
    assert isinstance(RULE, TaskRule)
    assert RULE.tasks(held) == 3
    with pytest.raises(
        UnsupportedAdapterError, match="holds 3 tasks, and none is chosen"
    ) as caught:
        RULE.describe(held)
    assert caught.value.hint is not None
    assert "from 0 to 2 with task_id in lora_config.yaml, or with --task" in caught.value.hint
    assert caught.value.where.field is None


def test_a_single_task_needs_no_choice() -> None:
    held = checkpoint("POLY", of_module(made(1, 2, 3, 3, 2, tasks=1)), r=2, n_skills=2)
    assert lowered(RULE, held).rank == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_skills": 4}, "has 1 splits and 2 skills, expected 1 and 4 from the configuration"),
        ({"n_splits": 2}, "has 1 splits and 2 skills, expected 2 and 2 from the configuration"),
        ({"n_tasks": 4}, r"module_logits has shape \[3, 2\], expected \[4, 2\]"),
        ({"r": 8}, "has rank 2 in the weights, expected 8"),
        ({"poly_type": "mhr"}, "poly_type is 'mhr', expected 'poly'"),
    ],
)
def test_a_configuration_that_contradicts_the_tensors_is_refused(
    fields: dict[str, Any], message: str
) -> None:
    given = {"r": 2, "n_skills": 2, "n_tasks": 3, "task_id": 0} | fields
    with pytest.raises(AdapterError, match=message):
        RULE.describe(checkpoint("POLY", of_module(made(1, 2, 3, 3, 2)), **given))


def test_the_scale_is_one_over_the_rank() -> None:
    held = checkpoint("POLY", of_module(made(1, 2, 3, 3, 2, tasks=1)), r=2, n_skills=2)
    assert RULE.describe(held).shapes[Q].scale == RULE.default_scale(held) == 0.5
