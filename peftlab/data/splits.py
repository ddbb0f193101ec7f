"""The rows of every part of a recipe's data, before any tokenizer: read, held out and drawn by the seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from peftlab.data.examples import read_examples
from peftlab.data.files import Table
from peftlab.data.leakage import prompt_key
from peftlab.data.sources import read_source
from peftlab.errors import DataError, listed, nearest, one_line
from peftlab.recipe.schema import Data
from peftlab.tasks import Task, find_format, tasks_taking
from peftlab.tasks.formats import TEXT, Example, Format, Text

# What a random order is for: each has its own, whatever else is drawn. 4 is the order of an epoch.
HELD_OUT, TRAIN_ROWS, EVALUATION_ROWS, HELD_OUT_TEST, TEST_ROWS = 1, 2, 3, 5, 6
# How rows are kept together: not at all, by their prompt, or else by a column.
BY_ROW, BY_PROMPT = "row", "prompt"


@dataclass(frozen=True)
class Examples:
    """The rows of a recipe before any tokenizer: enough to know the labels, and so to build the model.

    `repeated` is the number of rows that share their prompt (or group) with another row where a part was taken from
    the training rows, `kept_together` whether such rows are in one part then.
    """

    section: Data
    task: Task
    train: list[Example]
    evaluation: list[Example]
    labels: list[str] | None
    test: list[Example] = field(default_factory=list)
    general: list[Text] = field(default_factory=list)
    repeated: int = 0
    kept_together: bool = True

    @property
    def format(self) -> Format:
        return find_format(self.section.format)


@dataclass(frozen=True)
class Pool:
    """Rows, and the group that each belongs to."""

    rows: Sequence[Example]
    groups: Sequence[Any]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: Sequence[int]) -> Pool:
        return Pool([self.rows[i] for i in places], [self.groups[i] for i in places])

    def alone(self) -> Pool:
        """Return the same rows, each a group of its own."""
        return Pool(self.rows, range(len(self.rows)))

    @property
    def repeated(self) -> int:
        """The number of rows that share their group with another one."""
        _, places, counts = np.unique(_numbers(self.groups), return_inverse=True, return_counts=True)
        return int((counts[places] > 1).sum())

    def split(self, count: int, seed: int, purpose: int) -> tuple[list[int], list[int]]:
        """Return the places of about `count` rows, whole groups in a random order, and those of all others.

        A group that would make them more than `count` is not taken, unless it is the only one.
        """
        members: dict[Any, list[int]] = {}
        for place, group in enumerate(self.groups):
            members.setdefault(group, []).append(place)
        groups = list(members.values())
        ordered = [groups[i] for i in permute(len(groups), seed, purpose)]
        taken: list[int] = []
        others: list[int] = []
        for group in ordered:
            fits = len(taken) + len(group) <= count
            (taken if fits else others).extend(group)
        return (taken, others) if taken else (ordered[0], [i for group in ordered[1:] for i in group])


def permute(n: int, seed: int, purpose: int) -> np.ndarray:
    """Return a random order of `n` things for one purpose."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([purpose, seed]))).permutation(n)


def load_examples(section: Data, task: Task, seed: int) -> Examples:
    """Read a recipe's rows, hold out and draw by `seed`, and list the labels of the whole training source."""
    check_format(section, task)
    table = read_source(section.train, "train")
    rows = read_examples(table, section)
    labels = task.list_labels(rows)
    if labels is not None and len(labels) < task.fewest_labels:
        found = f"{one_line(labels[0], 60)!r} is the only label" if labels else "no row has a label"
        needed = "at least two" if task.fewest_labels == 2 else "at least one"
        raise DataError(f"{section.train}: {found}; a classifier needs {needed}")
    pool = Pool(rows, _groups(rows, table, section))
    from_train = not all(isinstance(one, str | None) for one in (section.evaluation, section.test))
    repeated = pool.repeated if from_train else 0
    together = repeated > 0 and _can_keep_together(pool, section, seed)
    pool = pool if together else pool.alone()
    pool, evaluation = _set_aside(pool, section, "evaluation", seed, HELD_OUT)
    pool, test = _set_aside(pool, section, "test", seed, HELD_OUT_TEST)
    for part, aside in (("evaluation", evaluation), ("test", test)):
        check_labels(aside.rows, task, labels, str(getattr(section, part)))
    return Examples(
        section,
        task,
        list(_draw(pool.alone(), section.train_rows, seed, TRAIN_ROWS).rows),
        list(_draw(evaluation, section.evaluation_rows, seed, EVALUATION_ROWS).rows),
        labels,
        list(_draw(test, section.test_rows, seed, TEST_ROWS).rows),
        read_general(section.general),
        repeated,
        together or not repeated,
    )


def check_format(section: Data, task: Task) -> None:
    """Raise DataError for a format that is not one of the task's."""
    if task.takes(section.format):
        return
    taken, owners = (" or ".join(names) for names in ((f.name for f in task.formats), tasks_taking(section.format)))
    raise DataError(
        f"data.format {section.format} does not suit model.task {task.name}: it belongs to task {owners}, and "
        f"{task.name} needs format {taken}"
    )


def read_part(section: Data, part: str, seed: int) -> list[Example]:
    """Return the evaluation or test rows of a recipe that has a source of their own for them."""
    purpose = {"evaluation": EVALUATION_ROWS, "test": TEST_ROWS}[part]
    pool = _read_own(section, getattr(section, part))
    return list(_draw(pool, getattr(section, f"{part}_rows"), seed, purpose).rows)


def read_general(source: str | None) -> list[Text]:
    """Return the texts of a recipe's `data.general`."""
    if source is None:
        return []
    return read_examples(read_source(source, "test"), Data.model_validate({"train": source, "format": TEXT.name}))


def check_labels(examples: Sequence[Example], task: Task, labels: list[str] | None, source: str) -> None:
    """Raise DataError for a label that is not one of `labels`."""
    known = labels or []
    for row, example in enumerate(examples, start=1):
        if unknown := [label for label in task.labels_of(example) if label not in known]:
            fault = f"label {one_line(unknown[0], 60)!r} never occurs in training; known labels: {listed(known)}"
            raise DataError(f"{source}: row {row}: {fault}")


def _groups(rows: Sequence[Example], table: Table, section: Data) -> Sequence[Any]:
    """Return the group of every row: its prompt, the value of a column, or its own number."""
    column = section.group_by
    if column not in (None, BY_ROW, BY_PROMPT):
        if column not in table.columns:
            hint = f"{nearest(column, table.columns)}; its columns: {listed(table.columns)}"
            raise DataError(f"data.group_by: {table.name} has no column {column!r}{hint}")
        return [repr(value) for value in table.columns[column]]
    key = prompt_key(find_format(section.format))
    if column == BY_PROMPT and key is None:
        raise DataError(f"data.group_by: format {section.format} has no prompt; name a column, or remove it")
    return range(len(rows)) if key is None or column == BY_ROW else [key(row) for row in rows]


def _can_keep_together(pool: Pool, section: Data, seed: int) -> bool:
    """Whether groups give parts of about the asked sizes; an explicit `group_by` is obeyed however they come out."""
    if section.group_by is not None:
        return True
    for part, purpose in (("evaluation", HELD_OUT), ("test", HELD_OUT_TEST)):
        wanted = getattr(section, part)
        if isinstance(wanted, int | float):
            count = _count(wanted, len(pool))
            taken, _ = pool.split(count, seed, purpose)
            if not count / 2 <= len(taken) <= min(2 * count, len(pool) - 1):
                return False
    return True


def _set_aside(pool: Pool, section: Data, part: str, seed: int, purpose: int) -> tuple[Pool, Pool]:
    """Return what stays for training, and a part that is read from its own source or taken from `pool`."""
    wanted = getattr(section, part)
    if wanted is None:
        return pool, Pool([], [])
    if isinstance(wanted, str):
        return pool, _read_own(section, wanted)
    count = _count(wanted, len(pool))
    if count >= len(pool):
        raise DataError(f"data.{part}: holding out {wanted} leaves no training row of {len(pool)}")
    taken, others = pool.split(count, seed, purpose)
    if not others:
        raise DataError(
            f"data.{part}: all rows are of one group, so none would be left for training; set data.group_by"
        )
    return pool.take(others), pool.take(taken)


def _read_own(section: Data, source: str) -> Pool:
    own = _drawn_section(section)
    table = read_source(source, "test")
    rows = read_examples(table, section)
    return Pool(rows, _groups(rows, table, own))


def _drawn_section(section: Data) -> Data:
    """Return a section whose rows are drawn by prompt, where it names a column that only training rows need to have."""
    return section if section.group_by == BY_ROW else section.model_copy(update={"group_by": None})


def _count(wanted: float, rows: int) -> int:
    return wanted if isinstance(wanted, int) else max(1, round(wanted * rows))


def _draw(pool: Pool, count: int | None, seed: int, purpose: int) -> Pool:
    return pool if count is None or count >= len(pool) else pool.take(pool.split(count, seed, purpose)[0])


def _numbers(groups: Sequence[Any]) -> np.ndarray:
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], np.int64)
