"""Soft prompts that are rows before the embedded tokens: `prefix_embeds [virtual tokens, dim]`.

PROMPT_TUNING, P_TUNING and CPT: the file holds the rows themselves; what computed them in training
(an encoder, the tokens they started from) is not needed. MULTITASK_PROMPT_TUNING: the rows are
scaled, element by element, by a product of low rank for each task.

    rows = prompt_embeddings * (prefix_task_cols[task] prefix_task_rows[task])
"""

from __future__ import annotations

from typing import ClassVar

from lora_quant.adapters.description import PromptShape
from lora_quant.adapters.files.checkpoint import Checkpoint
from lora_quant.adapters.frame.tasks import TASK_FIELD, chosen_task
from lora_quant.adapters.kinds.prompt_rule import PROMPT, PromptKindRule, expect, given, read
from lora_quant.adapters.lowered import FloatArray

_TEXT = frozenset(
    {
        "prompt_tuning_init",
        "prompt_tuning_init_text",
        "tokenizer_kwargs",
        "tokenizer_name_or_path",
    }
)
_COLS = "prefix_task_cols"
_ROWS = "prefix_task_rows"


class PromptTuningRule(PromptKindRule):
    """The rows as they are stored."""

    kind: ClassVar[str] = "PROMPT_TUNING"
    neutral = _TEXT

    def prompt_shape(self, checkpoint: Checkpoint) -> PromptShape:
        """`[num_virtual_tokens, token_dim]`."""
        config = checkpoint.config
        shape = given(config, "num_virtual_tokens"), given(config, "token_dim")
        expect(checkpoint, PROMPT, shape)
        return PromptShape("prefix_embeds", shape)

    def prompt(self, checkpoint: Checkpoint, shape: PromptShape) -> FloatArray:
        """See PromptRule."""
        del shape
        return read(checkpoint, PROMPT)


class PTuningRule(PromptTuningRule):
    """The rows that the prompt encoder computed."""

    kind: ClassVar[str] = "P_TUNING"
    neutral = frozenset(
        {
            "encoder_dropout",
            "encoder_hidden_size",
            "encoder_num_layers",
            "encoder_reparameterization_type",
        }
    )


class CptRule(PromptTuningRule):
    """The rows of tokens, moved within a bound that training keeps."""

    kind: ClassVar[str] = "CPT"
    neutral = frozenset(
        {
            "cpt_mask",  # of labels, while it trains
            "cpt_token_ids",
            "cpt_tokens_type_mask",
            "opt_loss_decay_factor",
            "opt_projection_epsilon",
            "opt_projection_format_epsilon",
            "opt_weighted_loss_type",
            "tokenizer_name_or_path",
        }
    )


class MultitaskPromptTuningRule(PromptTuningRule):
    """The rows of the chosen task."""

    kind: ClassVar[str] = "MULTITASK_PROMPT_TUNING"
    more = (_COLS, _ROWS)
    used = frozenset({"num_ranks", "num_tasks", TASK_FIELD})
    neutral = _TEXT | {"prompt_tuning_init_state_dict_path", "prompt_tuning_init_task"}

    def tasks(self, checkpoint: Checkpoint) -> int:
        """See TaskRule."""
        return checkpoint.config.positive("num_tasks", 1)

    def prompt_shape(self, checkpoint: Checkpoint) -> PromptShape:
        """`[num_virtual_tokens, token_dim]`; refuses to choose a task by itself."""
        tasks = self.tasks(checkpoint)
        chosen_task(checkpoint.config, tasks)
        shape = super().prompt_shape(checkpoint)
        tokens, dim = shape.shape
        ranks = checkpoint.config.positive("num_ranks", 1)
        expect(checkpoint, _COLS, (tasks, tokens, ranks))
        expect(checkpoint, _ROWS, (tasks, ranks, dim))
        return shape

    def prompt(self, checkpoint: Checkpoint, shape: PromptShape) -> FloatArray:
        """See PromptRule; multiplied in float32 as PEFT does."""
        task = chosen_task(checkpoint.config, self.tasks(checkpoint))
        cols, rows = read(checkpoint, _COLS)[task], read(checkpoint, _ROWS)[task]
        scaled: FloatArray = super().prompt(checkpoint, shape) * (cols @ rows)
        return scaled
