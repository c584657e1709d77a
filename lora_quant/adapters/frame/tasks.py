"""Adapters that hold one set of weights and several tasks, of which one is lowered at a time.

Their configuration does not say which task. The loader puts the user's choice beside its fields,
as `task_id`; the file has no such field, so that errors name the file alone.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from lora_quant.adapters.files.checkpoint import Checkpoint
from lora_quant.adapters.files.peft_config import PeftConfig
from lora_quant.errors import AdapterError, UnsupportedAdapterError, Where, short

TASK_FIELD = "task_id"
_NAME_IT = "with task_id in lora_config.yaml, or with --task"


@runtime_checkable
class TaskRule(Protocol):
    """A rule for a kind with tasks."""

    def tasks(self, checkpoint: Checkpoint) -> int:
        """The number of tasks, from the configuration; they are counted from 0."""


def chosen_task(config: PeftConfig, tasks: int) -> int:
    """The task to lower; the only one needs no choice.

    Raises UnsupportedAdapterError if there are several and none is chosen, AdapterError for a
    choice that is not among them.
    """
    task = config.fields.get(TASK_FIELD)
    if task is None:
        if tasks == 1:
            return 0
        raise UnsupportedAdapterError(
            f"the adapter holds {tasks} tasks, and none is chosen",
            where=Where(file=config.file),
            hint=f"name a task from 0 to {tasks - 1} {_NAME_IT}; each task is an adapter of its "
            "own",
        )
    if type(task) is not int or not 0 <= task < tasks:
        raise AdapterError(
            f"the task is {short(task)}, expected a whole number from 0 to {tasks - 1}",
            where=Where(file=config.file),
            hint=f"name one of them {_NAME_IT}; they are counted in the order in which they were "
            "trained, from 0",
        )
    return task


def with_task(config: PeftConfig, rule: object, task: int) -> PeftConfig:
    """The same configuration with the user's choice of a task.

    Raises AdapterError for the rule of a kind that has none.
    """
    if not isinstance(rule, TaskRule):
        raise AdapterError(
            f"task {task} is chosen, and an adapter of kind {config.peft_type} has no tasks",
            where=Where(file=config.file),
            hint="remove task_id from its entry in lora_config.yaml, or leave --task out",
        )
    return PeftConfig(config.file, config.peft_type, {**config.fields, TASK_FIELD: task})
