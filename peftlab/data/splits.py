"""The rows of every part of a recipe's data, before any tokenizer: read, held out and drawn by the seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from peftlab.data.kept_examples import Kept, choose
from peftlab.data.keys import Keys
from peftlab.data.leakage import prompt_key
from peftlab.data.orders import Mixture
from peftlab.data.parts import DataReader, Part, Tally, describe_sources
from peftlab.data.sources import Source, read_source
from peftlab.data.stream import StreamedSources
from peftlab.errors import DataError, listed, one_line
from peftlab.recipe.schema import Data, list_sources
from peftlab.tasks import TASKS, Task, find_format, tasks_taking
from peftlab.tasks.formats import TEXT, Example, Format, Text

# What a random order is for: each has its own, whatever else is drawn. 4 is the order of an epoch.
HELD_OUT, TRAIN_ROWS, EVALUATION_ROWS, HELD_OUT_TEST, TEST_ROWS = 1, 2, 3, 5, 6
HeldOutPart = Literal["evaluation", "test"]
# How rows are kept together: not at all, by their prompt, or else by a column.
BY_ROW, BY_PROMPT = "row", "prompt"


@dataclass(frozen=True)
class Examples:
    """The rows of a recipe before any tokenizer: enough to know the labels, and so to build the model.

    `section` has the format that the rows were recognised as, `read` says of each part what was skipped while reading.
    Of `streamed` sources `train` has the first rows only; a `mixture` says which sources the training rows are of.
    `repeated` is the number of rows that share their prompt (or group) with another row where a part was taken from
    the training rows, `kept_together` whether such rows are in one part then.
    """

    section: Data
    task: Task
    train: Sequence[Example]
    evaluation: Sequence[Example]
    labels: list[str] | None
    test: Sequence[Example] = field(default_factory=list)
    general: Sequence[Text] = field(default_factory=list)
    repeated: int = 0
    kept_together: bool = True
    read: dict[str, dict[str, Any]] = field(default_factory=dict)
    mixture: Mixture | None = None
    streamed: StreamedSources | None = None

    @property
    def format(self) -> Format:
        return find_format(self.section.format)


@dataclass(frozen=True)
class Pool:
    """The examples at `places` of `examples`, and the number of the group that each belongs to."""

    examples: Sequence[Example]
    places: np.ndarray
    groups: np.ndarray

    @classmethod
    def of(cls, examples: Sequence[Example], groups: np.ndarray | None = None) -> Pool:
        places = np.arange(len(examples))
        return cls(examples, places, places if groups is None else groups)

    def __len__(self) -> int:
        return len(self.places)

    @property
    def rows(self) -> Sequence[Example]:
        return choose(self.examples, self.places)

    def take(self, chosen: np.ndarray) -> Pool:
        return Pool(self.examples, self.places[chosen], self.groups[chosen])

    def alone(self) -> Pool:
        """Return the same rows, each a group of its own."""
        return Pool(self.examples, self.places, np.arange(len(self)))

    @property
    def repeated(self) -> int:
        """The number of rows that share their group with another one."""
        _, numbers, counts = np.unique(self.groups, return_inverse=True, return_counts=True)
        return int((counts[numbers] > 1).sum())

    def split(self, count: int, seed: int, purpose: int) -> tuple[np.ndarray, np.ndarray]:
        """Return which of the rows are in a part of about `count` rows, and all others.

        Whole groups are taken in a random order. One that would make the part larger than `count` is not taken, unless
        it is the first of all and no other is.
        """
        groups = _Groups(self.groups)
        ordered = permute(len(groups.sizes), seed, purpose)
        fits, taken = np.zeros(len(ordered), bool), 0
        for number, size in enumerate(groups.sizes[ordered].tolist()):
            if taken + size <= count:
                fits[number], taken = True, taken + size
        if not taken:
            fits[:1] = True
        return groups.members(ordered[fits]), groups.members(ordered[~fits])


class _Groups:
    """Rows by their group; groups count in the order in which they first occur."""

    def __init__(self, numbers: np.ndarray) -> None:
        _, first, inverse, counts = np.unique(numbers, return_index=True, return_inverse=True, return_counts=True)
        order = np.argsort(first, kind="stable")
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        self.sizes = counts[order]
        self._by_group = np.argsort(rank[inverse], kind="stable")
        self._begins = np.cumsum(self.sizes) - self.sizes

    def members(self, groups: np.ndarray) -> np.ndarray:
        """Return the rows of some groups, one group after another."""
        sizes = self.sizes[groups]
        inside = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return self._by_group[np.repeat(self._begins[groups], sizes) + inside]


def permute(n: int, seed: int, purpose: int) -> np.ndarray:
    """Return a random order of `n` things for one purpose."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([purpose, seed]))).permutation(n)


def load_examples(
    section: Data,
    task: Task,
    seed: int,
    keep: Callable[[], Kept] = list,
    open_source: Callable[[str, str], Source] = read_source,
    known_labels: Sequence[str] = (),
) -> Examples:
    """Read a recipe's rows, hold out and draw by `seed`, and list the labels of the whole training source.

    Labels have the order of `known_labels`, those of a head that is trained already, where they are the same ones.
    `keep` returns where the rows of a part are kept; those of a list are in lists. `open_source` opens sources.
    """
    reader = DataReader(section, task, keep, open_source)
    streamed = StreamedSources.open(reader) if section.streaming else None
    train = reader.read_part("train", _group_column(section)) if streamed is None else _read_sample(reader, streamed)
    section, rows = reader.section, train.examples
    labels = task.list_labels(rows) if streamed is None else streamed.labels(rows)
    _check_labels_suffice(labels, task, section)
    labels = labels and in_order_of(known_labels, labels)
    from_train = any(isinstance(one, int | float) for one in (section.evaluation, section.test))
    pool = Pool.of(rows, _groups(train, section, needed=from_train))
    repeated = pool.repeated if from_train else 0
    together = repeated > 0 and _can_keep_together(pool, section, seed)
    pool = pool if together else pool.alone()
    pool, evaluation = _set_aside(pool, reader, "evaluation", len(rows), seed, HELD_OUT)
    pool, test = _set_aside(pool, reader, "test", len(rows), seed, HELD_OUT_TEST)
    for part, aside in (("evaluation", evaluation), ("test", test)):
        check_labels(aside.rows, task, labels, describe_sources(getattr(section, part)))
    kept, mixture = _by_source(_draw(pool.alone(), section.train_rows, seed, TRAIN_ROWS), train, section)
    return Examples(
        section,
        task,
        kept.rows,
        _draw(evaluation, section.evaluation_rows, seed, EVALUATION_ROWS).rows,
        labels,
        _draw(test, section.test_rows, seed, TEST_ROWS).rows,
        read_general(section),
        repeated,
        together or not repeated,
        reader.facts,
        mixture,
        streamed,
    )


def in_order_of(known: Sequence[str], labels: list[str]) -> list[str]:
    """Return labels in the order of `known` ones where both are the same, but for their case; else as they are."""
    places = {one.casefold(): place for place, one in enumerate(known)}
    keys = {label.casefold() for label in labels}
    if keys != places.keys() or not len(keys) == len(labels) == len(known):
        return labels
    return sorted(labels, key=lambda label: places[label.casefold()])


def _check_labels_suffice(labels: list[str] | None, task: Task, section: Data) -> None:
    if labels is not None and len(labels) < task.fewest_labels:
        found = f"{one_line(labels[0], 60)!r} is the only label" if labels else "no row has a label"
        needed = "at least two" if task.fewest_labels == 2 else "at least one"
        raise DataError(f"{describe_sources(section.train)}: {found}; a classifier needs {needed}")


def _read_sample(reader: DataReader, streamed: StreamedSources) -> Part:
    tally = Tally()
    examples = streamed.sample(tally)
    reader.facts["train"] = tally.describe() | {"streamed": True} | reader.describe_roles()
    return Part(examples, None, [len(examples)])


def _by_source(pool: Pool, read: Part, section: Data) -> tuple[Pool, Mixture | None]:
    """Return training rows one source after another where sources have weights, and the mixture that they make."""
    entries = list_sources(section.train)
    weights = [entry.weight for entry in entries if entry.weight is not None]
    if section.streaming or len(weights) != len(entries):
        return pool, None
    owners = np.repeat(np.arange(len(entries)), read.sizes)[pool.places]
    names = tuple(entry.source for entry in entries)
    sizes = tuple(np.bincount(owners, minlength=len(entries)).tolist())
    mixture = Mixture(names, sizes, tuple(weights), section.stopping_strategy == "all_exhausted")
    return pool.take(np.argsort(owners, kind="stable")), mixture


def read_part(
    section: Data, task: Task, part: HeldOutPart, seed: int, roles: Sequence[str] | None = None
) -> list[Example]:
    """Return the evaluation or test rows of a recipe that has a source of their own for them.

    `roles` are the optional ones that the training rows had, where that is known. Raises DataError for others.
    """
    purpose = {"evaluation": EVALUATION_ROWS, "test": TEST_ROWS}[part]
    reader = DataReader(section, task)
    reader.expect_roles(roles)
    pool = _read_own(reader, part)
    return list(_draw(pool, getattr(section, f"{part}_rows"), seed, purpose).rows)


def read_general(section: Data) -> Sequence[Text]:
    """Return the texts of a recipe's `data.general`."""
    if section.general is None:
        return []
    plain = Data.model_validate({"train": section.general, "format": TEXT.name, "on_error": section.on_error})
    return DataReader(plain, TASKS[tasks_taking(TEXT.name)[0]]).read_part("train", part_default="test").examples


def check_labels(examples: Sequence[Example], task: Task, labels: list[str] | None, source: str) -> None:
    """Raise DataError for a label that is not one of `labels`."""
    known = labels or []
    for row, example in enumerate(examples, start=1):
        if unknown := [label for label in task.labels_of(example) if label not in known]:
            fault = f"label {one_line(unknown[0], 60)!r} never occurs in training; known labels: {listed(known)}"
            raise DataError(f"{source}: row {row}: {fault}")


def _group_column(section: Data) -> str | None:
    return None if section.group_by in (BY_ROW, BY_PROMPT) else section.group_by


def _groups(part: Part, section: Data, *, needed: bool = True) -> np.ndarray | None:
    """Return the group of every row: its prompt, the value of a column, or none, as where it is not `needed`."""
    key = prompt_key(find_format(section.format))
    if part.values is not None:
        return part.values.numbers()
    if section.group_by == BY_PROMPT and key is None:
        raise DataError(f"data.group_by: format {section.format} has no prompt; name a column, or remove it")
    return (
        None if key is None or section.group_by == BY_ROW or not needed else Keys.of(map(key, part.examples)).numbers()
    )


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


def _set_aside(
    pool: Pool, reader: DataReader, part: HeldOutPart, rows: int, seed: int, purpose: int
) -> tuple[Pool, Pool]:
    """Return what stays for training, and a part that is read from its own source or taken from `pool`.

    `rows` are all that `data.train` has, of which a recipe gives a fraction.
    """
    wanted = getattr(reader.section, part)
    if wanted is None:
        return pool, Pool.of([])
    if isinstance(wanted, str | tuple):
        return pool, _read_own(reader, part)
    count = _count(wanted, rows)
    if count >= len(pool):
        raise DataError(f"data.{part}: holding out {wanted} leaves no training row of {len(pool)}")
    taken, others = pool.split(count, seed, purpose)
    if not len(others):
        raise DataError(
            f"data.{part}: all rows are of one group, so none would be left for training; set data.group_by"
        )
    return pool.take(others), pool.take(taken)


def _read_own(reader: DataReader, part: HeldOutPart) -> Pool:
    found = reader.read_part(part)
    drawn = getattr(reader.section, f"{part}_rows") is not None
    return Pool.of(found.examples, _groups(found, _drawn_section(reader.section), needed=drawn))


def _drawn_section(section: Data) -> Data:
    """Return a section whose rows are drawn by prompt, where it names a column that only training rows need to have."""
    return section if section.group_by == BY_ROW else section.model_copy(update={"group_by": None})


def _count(wanted: float, rows: int) -> int:
    return wanted if isinstance(wanted, int) else max(1, round(wanted * rows))


def _draw(pool: Pool, count: int | None, seed: int, purpose: int) -> Pool:
    return pool if count is None or count >= len(pool) else pool.take(pool.split(count, seed, purpose)[0])
