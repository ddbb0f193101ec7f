"""The registry of tasks: one line each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peftlab.tasks.base import Task
from peftlab.tasks.causal_lm import CausalLM
from peftlab.tasks.formats import Format
from peftlab.tasks.multi_label import MultiLabelClassification
from peftlab.tasks.regression import Regression
from peftlab.tasks.sequence_classification import SequenceClassification
from peftlab.tasks.sequence_to_sequence import SequenceToSequence
from peftlab.tasks.token_classification import TokenClassification

if TYPE_CHECKING:
    from torch import nn

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        CausalLM(),
        SequenceClassification(),
        MultiLabelClassification(),
        Regression(),
        TokenClassification(),
        SequenceToSequence(),
    )
}

DEFAULT_TASK = "causal-lm"

__all__ = [
    "DEFAULT_TASK",
    "TASKS",
    "Format",
    "Task",
    "find_format",
    "list_formats",
    "possible_formats",
    "task_of",
    "tasks_taking",
]


def list_formats() -> list[str]:
    """Return the names of all formats of rows."""
    return list(dict.fromkeys(one.name for task in TASKS.values() for one in task.formats))


def find_format(name: str | None) -> Format:
    """Return the format of this name. Raises KeyError."""
    return {one.name: one for task in TASKS.values() for one in task.formats}[name or ""]


def possible_formats(task: Task, name: str | None) -> tuple[Format, ...]:
    """Return the format that a recipe names, or those that its rows may be recognised as."""
    return task.formats if name is None else (find_format(name),)


def tasks_taking(format_name: str | None) -> list[str]:
    """Return the names of the tasks whose rows can have this format."""
    return [task.name for task in TASKS.values() if task.takes(format_name)]


def task_of(model: nn.Module) -> Task:
    """Return the task that a transformers model is built for; causal language modelling by default."""
    from peftlab.parameters.trainable import find_base

    base = find_base(model)[1]
    return next((task for task in TASKS.values() if task.builds(base)), TASKS[DEFAULT_TASK])
