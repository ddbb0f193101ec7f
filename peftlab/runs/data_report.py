"""What the model will see of a recipe's data: facts on all rows and chosen rows, before any weight is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from peftlab.data.batches import Padded
from peftlab.data.dataset import Dataset, tokenise
from peftlab.data.notes import note_data
from peftlab.data.row_report import RowReports, oddest
from peftlab.data.rows import ShuffledRows
from peftlab.data.splits import Examples, load_examples
from peftlab.data.token_arrays import sizes_of
from peftlab.errors import DataError, UsageError
from peftlab.models.load import load_tokenizer
from peftlab.recipe.schema import Recipe
from peftlab.reports import DataReport, LengthBin, RowReport, StepsReport
from peftlab.runs.classes import known_classes
from peftlab.runs.loading import read_shape
from peftlab.runs.setup import count_steps

PARTS = ("train", "evaluation", "test")
# How many examples `worst` looks at, and how many steps the mean padding is of.
EXAMPLES_EXAMINED, STEPS_EXAMINED = 5000, 200
BINS = 10


def report_data(
    recipe: Recipe,
    *,
    part: str = "train",
    indices: Sequence[int] = (),
    count: int | None = None,
    worst: bool = False,
) -> DataReport:
    """Return facts on a recipe's data and reports on rows of one part: `indices`, or `count` of them (None: all).

    `worst` takes the oddest rows first, instead of the first ones. Raises DataError for data that cannot be read,
    UsageError for a part without rows or an index that it does not have.
    """
    examples = load_examples(recipe.data, recipe.task, recipe.data_seed, known_labels=known_classes(recipe))
    _check_choice(part, len(getattr(examples, part)), indices)
    shape = read_shape(recipe, examples.labels)
    tokenizer = load_tokenizer(recipe.model)
    dataset, refusal = _tokenise(examples, tokenizer, shape.vocabulary)
    found = RowReports(examples, part, tokenizer)
    return DataReport(
        part=part,
        data=dataset.report if dataset else {},
        ends=_name_ends(dataset, tokenizer) if dataset else [],
        steps=_report_steps(recipe, dataset) if dataset else None,
        lengths=_bin_lengths(dataset, part) if dataset else [],
        notes=note_data(recipe, dataset.report) if dataset else [],
        refusal=refusal,
        rows=_choose(found, indices, count, worst),
    )


def _check_choice(part: str, rows: int, indices: Sequence[int]) -> None:
    if not rows:
        raise UsageError(f"--part {part}: the recipe has no rows of this part; set data.{part}")
    for index in indices:
        if not 0 <= index < rows:
            raise UsageError(f"--row {index}: data.{part} has rows 0 to {rows - 1}")


def _tokenise(examples: Examples, tokenizer: Any, vocabulary: int) -> tuple[Dataset | None, str | None]:
    """Return the tokenised data (None where there is nothing to train on), and why training would refuse it."""
    dataset, refusal = None, None
    for allowed in (examples.section.allow_dropped, 1.0):
        section = examples.section.model_copy(update={"allow_dropped": allowed})
        try:
            dataset = tokenise(replace(examples, section=section), tokenizer, vocabulary)
            break
        except DataError as error:
            refusal = refusal or str(error)
    return dataset, refusal


def _choose(found: RowReports, indices: Sequence[int], count: int | None, worst: bool) -> list[RowReport]:
    total = len(found.part)
    if indices:
        chosen: Sequence[int] = indices
    elif worst and total > EXAMPLES_EXAMINED:
        chosen = np.linspace(0, total - 1, EXAMPLES_EXAMINED).astype(int).tolist()
    else:
        chosen = range(total if worst or count is None else min(count, total))
    reports = [report for index in chosen for report in found.report(index)]
    return (oddest(reports) if worst else reports)[: None if indices else count]


def _name_ends(dataset: Dataset, tokenizer: Any) -> list[str]:
    """Return the supervised end markers of the training rows as text."""
    return [*tokenizer.convert_ids_to_tokens(list(dataset.stop_ids)), *dataset.stop_texts]


def _report_steps(recipe: Recipe, dataset: Dataset) -> StepsReport:
    """Return what one process's steps take, as means over all of them or the first ones of a long training."""
    training, train, order = recipe.training, dataset.train, dataset.order(recipe.run.seed)
    sizes = training.batch_size, training.gradient_accumulation, 0, 1
    rows = ShuffledRows(train, Padded(dataset.pad_id), *sizes, recipe.run.seed, order)
    steps = count_steps(training, order.epoch_rows, 1)
    examined = range(1, min(steps, STEPS_EXAMINED) + 1)
    counts = [rows.count(step) for step in examined]
    batches = [[len(train[i].input_ids) for i in numbers] for step in examined for numbers in rows.numbers(step)]
    places = sum(max(lengths) * len(lengths) for lengths in batches)
    return StepsReport(
        steps=steps,
        epochs=steps * rows.per_step / order.epoch_rows,
        rows=rows.per_step,
        tokens=float(np.mean([count.tokens for count in counts])),
        supervised=float(np.mean([count.targets for count in counts])),
        padding=1 - sum(map(sum, batches)) / places,
    )


def _bin_lengths(dataset: Dataset, part: str) -> list[LengthBin]:
    """Return the part's rows by their number of tokens, in bins of equal width that is a round number."""
    rows = dataset.train if part == "train" else dataset.evaluation if part == "evaluation" else dataset.test
    lengths = sizes_of(rows).tokens
    exact = lengths.max() / BINS
    scale = 10 ** max(0, len(str(int(exact))) - 1)
    width = next(step * scale for step in (1, 2, 5, 10) if step * scale >= exact)
    numbers = np.bincount((lengths - 1) // width)
    return [
        LengthBin(first=number * width + 1, last=(number + 1) * width, rows=int(count))
        for number, count in enumerate(numbers)
    ]
