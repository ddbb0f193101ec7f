"""Using what a run has trained: open it, and evaluate it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftlab.checkpoint.store import list_steps
from peftlab.data.dataset import Part
from peftlab.data.notes import note_parts
from peftlab.data.sources import files_of_recipe
from peftlab.errors import ModelError, StorageError, UsageError
from peftlab.evaluation.evaluate import Evaluated
from peftlab.files import refuse_output_file
from peftlab.models.reference import resolve
from peftlab.recipe.schema import Recipe
from peftlab.reports import Metrics
from peftlab.runs.digests import HELD_OUT, RECORD, WEIGHTS, refuse_changed
from peftlab.runs.directory import RunDirectory
from peftlab.runs.launch import launched
from peftlab.runs.loading import fill_trained
from peftlab.runs.reopen import load_run_recipe, reopen_bench
from peftlab.world.open import open_world, refuse_unsupported
from peftlab.world.quiet import quiet_libraries

# The parts on which a finished run is evaluated again, and the beginnings of the names of their metrics.
OWN_PARTS: dict[Part, str] = {"evaluation": "", "test": "test_"}


def evaluate(folder: Path, overrides: Sequence[str] = ()) -> Metrics:
    """Return the metrics of a run's trained weights on its evaluation and test rows, or on others by `overrides`."""
    return evaluate_run(folder, overrides).metrics


@dataclass(frozen=True)
class RunEvaluation:
    """What `evaluate_run` measured: metrics, the reasons for those that are None, settings, generated texts.

    The names of metrics of the test rows begin with `test_`. `notes` say what happened to the rows.
    """

    metrics: Metrics
    undefined: dict[str, str]
    signatures: dict[str, str]
    texts: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)

    @classmethod
    def join(cls, parts: Mapping[str, Evaluated], notes: list[str]) -> RunEvaluation:
        """Return several parts as one; `parts` has the beginning of each one's names."""
        return cls(
            {prefix + name: value for prefix, part in parts.items() for name, value in part.metrics.items()},
            {prefix + name: reason for prefix, part in parts.items() for name, reason in part.undefined.items()},
            {name: text for part in parts.values() for name, text in part.signatures.items()},
            [{"part": prefix.rstrip("_") or "evaluation", **row} for prefix, part in parts.items() if part.texts
             for row in part.texts.rows],
            notes,
        )  # fmt: skip


def evaluate_run(
    folder: Path, overrides: Sequence[str] = (), *, verify: bool = True, output: Path | None = None
) -> RunEvaluation:
    """Return what a run's trained weights reach on its evaluation and test rows, or on others by `overrides`.

    What it reads of the run is compared with the run's own digests first, unless `verify` is false. `output` is a file
    that the caller will write. Raises UsageError if it cannot be written, or has the rows.
    """
    quiet_libraries()
    directory, recipe = open_run(folder, overrides, verify)
    if output is not None:
        refuse_output_file(output, files_of_recipe(recipe.data))
    world = open_world(recipe.run.device)
    with launched(world):
        bench = reopen_bench(directory, recipe, world)
        if not (bench.dataset.evaluation or bench.dataset.test):
            raise UsageError("this recipe has no evaluation rows; name some, as in data.evaluation=FILE")
        model = fill_trained(recipe, bench.base, directory.weights, bench.device)
        notes = note_parts(bench.recipe, bench.dataset.report, list(OWN_PARTS))
        return RunEvaluation.join({prefix: bench.evaluate(model, part) for part, prefix in OWN_PARTS.items()}, notes)


def open_run(
    folder: Path, overrides: Sequence[str], verify: bool = True, also: Collection[str] = (), *, needs_base: bool = True
) -> tuple[RunDirectory, Recipe]:
    """Return a run's directory and its recipe; `also` names other parts of the run that the caller reads.

    Raises StorageError unless it has trained weights, as it saved them last, and ModelError where its base is not
    found, if it `needs_base`.
    """
    refuse_unsupported()
    directory = RunDirectory.open(folder)
    status = directory.read_result().status
    if verify:
        refuse_changed(folder, (*RECORD, WEIGHTS, HELD_OUT, *also))
        directory.refuse_outdated_weights()
    if not directory.has_weights():
        remedy = "train its recipe with --resume" if list_steps(directory.checkpoints) else "train its recipe again"
        raise StorageError(f"{folder} has no trained weights (the run's status is {status!r}); {remedy}")
    recipe = load_run_recipe(directory, overrides)
    if recipe.model.trust_remote_code and "model.trust_remote_code=true" not in overrides:
        raise UsageError(
            f"{folder}: its recipe runs the code that {recipe.model.name} ships; if you trust the run and that model, "
            "add model.trust_remote_code=true"
        )
    if needs_base:
        _refuse_moved(recipe)
    return directory, recipe


def _refuse_moved(recipe: Recipe) -> None:
    try:
        resolve(recipe.model.name, recipe.model.revision)
    except ModelError as error:
        raise ModelError(f"{error}; if the run's base has moved, add model.name=PATH") from None
