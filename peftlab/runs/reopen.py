"""A finished run's rows, classes and tokenizer, from the run alone: its training file may have changed or be gone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftlab.data.examples import fingerprint
from peftlab.data.held_out import read_held_out, write_held_out
from peftlab.data.parts import OPTIONAL_ROLES, describe_sources
from peftlab.data.splits import Examples, HeldOutPart, check_labels, load_examples, read_general, read_part
from peftlab.errors import DataError, RecipeError, StorageError
from peftlab.methods.storage import read_context
from peftlab.models.load import load_saved_tokenizer
from peftlab.recipe.load import load_recipe
from peftlab.recipe.schema import Recipe
from peftlab.reports import RunResult
from peftlab.runs.bench import Bench, build_bench
from peftlab.runs.directory import RunDirectory
from peftlab.runs.identity import earlier_settings
from peftlab.tasks import find_format
from peftlab.tasks.formats import Example
from peftlab.world.base import World

PARTS: tuple[HeldOutPart, ...] = ("evaluation", "test")
# What decides which rows are held out and what they contain.
CHOOSING = ("train", "columns", "template", "tools", "format", "group_by")


def load_run_recipe(directory: RunDirectory, overrides: Sequence[str] = ()) -> Recipe:
    """Return a run's recipe as the version that wrote it understood it, with `overrides`.

    Raises RecipeError for what the overrides make wrong, and StorageError for a file that is wrong without them.
    """
    try:
        recorded = directory.read_result().recipe
    except StorageError:  # it is raised where the record is needed, after what can be refused without it
        recorded = {}
    own = earlier_settings(recorded)
    try:
        return load_recipe(directory.recipe, [*own, *overrides])
    except RecipeError:
        _refuse_damaged(directory.recipe, own)
        raise


def _refuse_damaged(path: Path, own: Sequence[str]) -> None:
    """Raise StorageError for a run's recipe that cannot be loaded as it is."""
    try:
        load_recipe(path, own)
    except RecipeError as error:
        first = next(iter(str(error).splitlines()))
        raise StorageError(f"{first}; the run's recipe is damaged: restore it") from None


def reopen_bench(directory: RunDirectory, recipe: Recipe, world: World) -> Bench:
    """Return the rows that a run is evaluated on, its tokenizer, and the base for its trained weights."""
    tokenizer = load_saved_tokenizer(directory.weights, recipe.model)
    result = directory.read_result()
    return build_bench(recipe, world, read_examples(directory, recipe, result), tokenizer, trained=result.data["train"])


def read_examples(directory: RunDirectory, recipe: Recipe, result: RunResult) -> Examples:
    """Return the held-out rows of `recipe`, their classes those of the run's weights.

    There are no training rows, but for a sample where the run has no others.

    Raises DataError for rows with another label, and where rows that were held out cannot be read again.
    """
    labels = run_labels(directory.weights, result)
    parts: dict[str, list[Example]] = {part: _read_part(directory, recipe, part, result) for part in PARTS}
    for part, rows in parts.items():
        check_labels(rows, recipe.task, labels, describe_sources(getattr(recipe.data, part)))
    general = read_general(recipe.data)
    sample = read_held_out(directory.held_out, "train", find_format(recipe.data.format)) or []
    return Examples(recipe.data, recipe.task, sample, parts["evaluation"], labels, parts["test"], general)


def optional_roles(result: RunResult) -> list[str] | None:
    """Return the optional columns that a run's training rows had; None where an earlier version did not note it."""
    found: list[str] | None = result.data.get("train", {}).get(OPTIONAL_ROLES)
    return found


def run_labels(weights: Path, result: RunResult) -> list[str] | None:
    """Return the classes that a run's head was trained with, in the order of its outputs."""
    return read_context(weights).get("labels") or result.data.get("labels")


def save_held_out(directory: RunDirectory, recipe: Recipe, parts: dict[str, Sequence[Example]]) -> None:
    """Write into a run's directory the rows that were taken from its training rows, as they were drawn.

    A run without evaluation and test rows keeps its first training rows, to compare a merged model on.
    """
    taken: dict[str, Sequence[Example]] = {
        part: parts[part] for part in PARTS if isinstance(getattr(recipe.data, part), int | float)
    }
    if not any(len(parts[part]) for part in PARTS):
        taken = {"train": parts["train"]}
    if taken:
        with directory.writing(directory.held_out) as temporary:
            for part, rows in taken.items():
                write_held_out(temporary, part, rows)


def _read_part(directory: RunDirectory, recipe: Recipe, part: HeldOutPart, result: RunResult) -> list[Example]:
    wanted, seed = getattr(recipe.data, part), recipe.data_seed
    if wanted is None:
        return []
    if isinstance(wanted, str | tuple):
        return read_part(recipe.data, recipe.task, part, seed, optional_roles(result))
    unchanged = _choice(recipe, part) == _choice(load_run_recipe(directory), part)
    if unchanged and (kept := read_held_out(directory.held_out, part, find_format(recipe.data.format))) is not None:
        return kept
    rows: list[Example] = getattr(load_examples(recipe.data, recipe.task, seed), part)
    known = result.data.get(part, {}).get("sha256")
    if unchanged and known not in (None, fingerprint(rows)):
        raise DataError(
            f"data.{part}: its rows were held out of {describe_sources(recipe.data.train)}, which has changed since the"
            f" run; restore that file, or name rows by data.{part}=FILE"
        )
    return rows


def _choice(recipe: Recipe, part: str) -> list[Any]:
    return [recipe.data_seed, *(getattr(recipe.data, name) for name in (*CHOOSING, part, f"{part}_rows"))]
