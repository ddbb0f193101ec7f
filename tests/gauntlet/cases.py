"""The cases of the gauntlet: a model type, a task and a method; and the recipe and the rows of each."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING

from peftlab.methods import METHODS, Method, Prefix
from peftlab.tasks import TASKS, Task

ROWS, HELD_OUT, STEPS, STOP, NEW_TOKENS, LONGEST = 10, 5, 3, 2, 4, 48
WORDS = "a row of words about numbers and names that a small model reads in one way or another".split()


@dataclass(frozen=True)
class Case:
    """One recipe of the gauntlet, by names that stay the same from run to run."""

    model_type: str
    task: str
    method: str

    @property
    def key(self) -> str:
        return f"{self.model_type} {self.task} {self.method}"


@dataclass(frozen=True)
class Outcome:
    """What became of a case: `works`, `refused` before loading with its line, or `fails` at a stage.

    `notes` are lines that a user reads, such as what the audit named or why there is no plan.
    """

    key: str
    outcome: str
    stage: str = ""
    reason: str = ""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


def method_variants() -> dict[str, Method]:
    """Return every registered method in its forms, small: what they need of a model differs by form."""
    forms = [method for kind in METHODS.values() for method in kind.variants().values()]
    forms.append(Prefix(kind="prompt"))
    smaller = {"rank": 4, "alpha": 8.0, "length": 3, "bottleneck": 4}
    small = [
        form.model_copy(update={k: v for k, v in smaller.items() if k in type(form).model_fields}) for form in forms
    ]
    return {method.form: method for method in small}


def cases_of(model_type: str) -> Iterator[Case]:
    """Yield a type's cases: a task for every class of it that a task builds, with every method."""
    for auto_class, task in first_tasks().items():
        if CONFIG_MAPPING[model_type] in getattr(transformers, auto_class)._model_mapping:
            yield from (Case(model_type, task.name, name) for name in method_variants())


def first_tasks() -> dict[str, Task]:
    """Return the first task of each auto class: others of the class (regression) have the same model."""
    found: dict[str, Task] = {}
    for task in TASKS.values():
        found.setdefault(task.auto_class, task)
    return found


def write_rows(task: Task, folder: Path) -> tuple[Path, Path]:
    """Write rows of the task's first format, of several lengths; return the training and the held-out file."""
    chance = random.Random(0)
    layout = task.formats[0]
    needed = [role for role in layout.roles if role not in layout.optional]
    rows = [{role: _cell(role, chance, number) for role in needed} for number in range(ROWS + HELD_OUT)]
    files = folder / f"{task.name}-train.jsonl", folder / f"{task.name}-held-out.jsonl"
    for file, part in zip(files, (rows[:ROWS], rows[ROWS:]), strict=True):
        file.write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return files


def _cell(role: str, chance: random.Random, number: int) -> Any:
    words = chance.choices(WORDS, k=3 + number % 7)
    cells: dict[str, Any] = {
        "label": "ab"[number % 2],
        "words": words,
        "tags": ["B-X" if len(word) > 4 else "O" for word in words],
        "labels": [["a"], ["a", "b"], []][number % 3],
        "target": number / 10,
    }
    return cells.get(role, " ".join(words))


def recipe_of(case: Case, base: Path, rows: tuple[Path, Path], output: Path, **run: Any) -> dict[str, Any]:
    """Return a case's recipe as values; `run` are settings of its section of that name."""
    method = method_variants()[case.method]
    return {
        "model": {"name": str(base), "task": case.task},
        "method": {**method.model_dump(mode="json", exclude_defaults=True), "type": method.type},
        "data": {
            "train": str(rows[0]),
            "evaluation": str(rows[1]),
            "format": TASKS[case.task].formats[0].name,
            "max_length": LONGEST,
        },
        "training": {"steps": STEPS, "batch_size": 3, "learning_rate": 1e-2, "speed": {"token_cache": "off"}},
        "evaluation": {"generation": {"max_new_tokens": NEW_TOKENS, "examples": 3}},
        "run": {"output": str(output), "device": "cpu", "log_every": 1, **run},
    }
