"""Benchmark tasks of lm-evaluation-harness (the extra `peftlab[harness]`; tried with 0.4.13) on any model of a run."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peftlab.data.chat import ChatTemplate
from peftlab.data.chat.template import Messages
from peftlab.errors import DataError, MissingRequirementError, UsageError, listed, nearest, one_line
from peftlab.reports import Metrics
from peftlab.world.quiet import quiet_libraries

TASK_FILES = (".yaml", ".yml")


def refuse_missing_harness() -> None:
    """Raise MissingRequirementError where lm-evaluation-harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingRequirementError("--tasks needs the package lm_eval: pip install 'peftlab[harness]'")


@dataclass(frozen=True)
class Tasks:
    """Tasks, groups and tags as the harness takes them: by name, or as the content of a task's own YAML file."""

    chosen: list[str | dict[str, Any]]
    manager: Any

    @property
    def names(self) -> list[str]:
        return [one if isinstance(one, str) else one["task"] for one in self.chosen]


def find_tasks(names: Sequence[str]) -> Tasks:
    """Return tasks by their names and files.

    Raises UsageError for a name that the harness does not know, DataError for a file that cannot be read.
    """
    from lm_eval.tasks import TaskManager

    # Reading the index of the harness's own tasks takes seconds.
    manager = TaskManager(include_defaults=any(not name.endswith(TASK_FILES) for name in names))
    chosen: list[str | dict[str, Any]] = []
    for name in names:
        if name.endswith(TASK_FILES):
            chosen.append(_read_task(Path(name)))
        elif name in manager.all_tasks:
            chosen.append(name)
        else:
            hint = nearest(name, manager.all_tasks)
            raise UsageError(f"--tasks: the harness has no task {name!r}{hint}; see `lm_eval ls tasks`")
    return Tasks(chosen, manager)


def _read_task(path: Path) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        content = load_yaml(path, resolve_func=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # of a YAML reader, or of a function that the file names
        raise DataError(f"{path}: is not a task of the harness: {one_line(error)}") from None
    if not isinstance(content, dict) or not content.get("task"):
        raise DataError(f"{path}: is not a task of the harness: it has no `task` with its name")
    return content


def run_tasks(
    model: nn.Module,
    tokenizer: Any,
    tasks: Tasks,
    *,
    batch_size: int,
    max_length: int | None = None,
    precision: torch.dtype = torch.float32,
    limit: int | None = None,
    shots: int | None = None,
    chat: ChatTemplate | None = None,
) -> dict[str, Metrics]:
    """Return the harness's metrics of `model` by task, with their standard errors (`acc_stderr`).

    `limit` is the number of rows of each task, `shots` of examples in a prompt. With `chat` prompts are rendered as
    chats by this template. `max_length` is in tokens. Raises DataError for a task that cannot load its data.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    languages: Any = HFLM(
        pretrained=model,  # type: ignore[arg-type]  # a PEFT model serves as well
        tokenizer=tokenizer,
        batch_size=batch_size,
        max_length=max_length,
        mixed_precision_dtype=None if precision == torch.float32 else precision,
    )
    if chat is not None:
        languages.apply_chat_template = _renderer(chat)
    try:
        found = simple_evaluate(
            languages,
            tasks=tasks.chosen,
            task_manager=tasks.manager,
            num_fewshot=shots,
            limit=limit,
            log_samples=False,
            bootstrap_iters=0,
            apply_chat_template=chat is not None,
        )
    except (OSError, ValueError) as error:  # most of all a data set that is not here
        raise DataError(f"--tasks {listed(tasks.names)}: {type(error).__name__}: {one_line(error)}") from None
    assert found is not None, "only other processes of a launch have no result"
    return {task: _values(values) for task, values in sorted(found["results"].items())}


def _renderer(template: ChatTemplate) -> Callable[..., str]:
    """Return what renders chats as the run does, in place of the harness's own call of the tokenizer.

    That would write today's date where the run has another, and no beginning of an answer in a template without one.
    """

    def render(messages: Messages, add_generation_prompt: bool = True) -> str:
        if add_generation_prompt:
            return template.write_prompt(messages)
        return template.write(messages, unfinished=True)

    return render


def _values(found: Mapping[str, Any]) -> Metrics:
    """Return a task's numbers; of a filter that is not `none` the name follows in brackets."""
    values: Metrics = {}
    for key, value in found.items():
        name, _, chosen = key.partition(",")
        if chosen and isinstance(value, int | float):
            values[name if chosen == "none" else f"{name} ({chosen})"] = float(value)
    return values


def quiet_harness() -> None:
    """Keep the harness's own messages off the terminal, but for errors."""
    quiet_libraries()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
