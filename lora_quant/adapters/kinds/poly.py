"""POLY: each task mixes the same few skills, every one of which is a LoRA.

    w = sigmoid(logits[task]), divided by its sum
    y += B (A x) / r,   A = sum_k w_k A_k,   B = sum_k w_k B_k

With n_splits, the input is cut into that many parts, and each has its own mix and A; the output
likewise. For one task it is plain low rank: a task is an adapter.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from lora_quant.adapters.files.checkpoint import Checkpoint
from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.adapters.frame.kind_rule import KindRule
from lora_quant.adapters.frame.module_tensors import Headers, ModuleTensors
from lora_quant.adapters.frame.tasks import TASK_FIELD, chosen_task
from lora_quant.adapters.lowered import Lowered, ModuleShape
from lora_quant.errors import UnsupportedAdapterError, short

_LOGITS = "poly_router.module_logits"
_EPS = 1e-12


class PolyRule(KindRule):
    """ΔW = s B A of the task's mix, s = 1 / r."""

    kind: ClassVar[str] = "POLY"
    rank = "r"
    required = ("poly_lora_A", "poly_lora_B", _LOGITS)
    rank_field = ("r", 8)
    used = frozenset({"n_skills", "n_splits", "n_tasks", "poly_type", TASK_FIELD})
    neutral = frozenset({"init_weights"})

    def tasks(self, checkpoint: Checkpoint) -> int:
        """See TaskRule."""
        return _tasks(checkpoint.config)

    def scale(self, config: PeftConfig, alpha: float, rank: int) -> float:
        """1 / r."""
        del config, alpha
        return 1 / rank

    def check(self, config: PeftConfig) -> None:
        """The task must be told, and the mix be the one of Polytropon."""
        variant = config.fields.get("poly_type", "poly")
        if variant != "poly":
            raise UnsupportedAdapterError(
                f"poly_type is {short(variant)}, expected 'poly'",
                where=config.where("poly_type"),
                hint="how another type mixes its skills is not known here",
            )
        chosen_task(config, _tasks(config))

    def shape(self, headers: Headers) -> ModuleShape:
        """A `[splits, skills, in / splits, r]`, B `[splits, skills, r, out / splits]`."""
        splits, skills, part, rank = headers.dims("poly_lora_A", 4)
        out = headers.dims("poly_lora_B", 4)[3]
        config = headers.config
        expected = config.positive("n_splits", 1), config.positive("n_skills", 4)
        if (splits, skills) != expected:
            raise headers.error(
                "poly_lora_A",
                f"poly_lora_A has {splits} splits and {skills} skills, expected {expected[0]} and "
                f"{expected[1]} from the configuration",
            )
        headers.expect(
            {
                "poly_lora_B": (splits, skills, rank, out),
                _LOGITS: (_tasks(config), splits * skills),
            }
        )
        headers.expect_rank("poly_lora_A", rank)
        return ModuleShape(headers.module, rank, splits * part, splits * out, scale=headers.scale)

    def formula(self, module: ModuleTensors) -> Lowered:
        """A `[r, in]` and B `[out, r]` of the chosen task."""
        a, b = module["poly_lora_A"], module["poly_lora_B"]
        splits, skills, _, rank = a.shape
        task = chosen_task(module.config, _tasks(module.config))
        # the logistic function, without the overflow of exp for large negative logits
        open_gates = (1 + np.tanh(module[_LOGITS][task].reshape(splits, skills) / 2)) / 2
        mix = open_gates / (open_gates.sum(axis=1, keepdims=True) + _EPS)
        A = np.einsum("qs,qsdr->qdr", mix, a).reshape(-1, rank).T
        B = np.einsum("qs,qsrd->qdr", mix, b).reshape(-1, rank)
        return Lowered(A, B, module.s)


def _tasks(config: PeftConfig) -> int:
    return config.positive("n_tasks", 1)
