"""What `--resume` finds in a run directory: what is whole, what is made again, and what cannot be."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from peftlab.checkpoint.store import Checkpoint, find_latest, list_steps
from peftlab.errors import StorageError
from peftlab.recipe.schema import Recipe
from peftlab.reports import RunResult
from peftlab.runs.digests import LAST, METRICS, PICTURE, RECORD, SCORES, TEXTS, WEIGHTS, find_faults
from peftlab.runs.directory import RunDirectory
from peftlab.runs.figures import check_record
from peftlab.runs.identity import as_recorded, count_row_processes, refuse_changed_recipe
from peftlab.runs.scores import read_scores
from peftlab.training.metrics_file import read_lines

UNVERIFIED = "--no-verify uses what can be read of it"


@dataclass(frozen=True)
class Resumption:
    """An earlier attempt of a run: its record, and from where it continues.

    `trained` says that the weights of the last step are saved: only what follows training remains. Otherwise
    training continues from `checkpoint`, and without one from the beginning. `scored` are the evaluations whose row
    scores are whole; `faults` is what is made again, a line each, by its file; `lost` is what cannot be.
    """

    former: RunResult | None = None
    checkpoint: Checkpoint | None = None
    trained: bool = False
    scored: frozenset[str] = frozenset()
    faults: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether the run is finished and everything that it keeps is there."""
        return self.trained and self.former is not None and self.former.status == "finished" and not self.faults

    @property
    def step(self) -> int:
        """The step after which the run continues."""
        if self.trained and self.former is not None:
            return self.former.progress.step
        return self.checkpoint.step if self.checkpoint else 0


def find_resumption(directory: RunDirectory, recipe: Recipe, verify: bool = True, row_processes: int = 1) -> Resumption:
    """Return from where a run continues. Raises StorageError if it is another run's, or where work would be lost.

    With `verify` all that the run keeps is compared with the digests that it wrote. `row_processes` share the rows of
    a step now.
    """
    if not directory.result.exists():
        return without_record(directory)
    faults = find_faults(directory.path) if verify else {}
    for part in RECORD:
        if part in faults:
            raise StorageError(f"{faults[part]}; restore it, or start the run again with --overwrite")
    former = directory.read_result()
    check_record(directory, former)
    asked = as_recorded(recipe, former.recipe).model_dump(mode="json")
    refuse_changed_recipe(former.recipe, asked, (count_row_processes(former.environment), row_processes))
    same = all(former.recipe["training"].get(key) == asked["training"][key] for key in ("steps", "epochs"))
    scored, faults = check_scores(directory, former, faults)
    lost = check_metrics(directory, faults, verify)
    if fault := faults.pop(LAST, None):  # beside the weights, and nothing else is made from them
        lost.append(fault)
    whole = WEIGHTS not in faults and directory.has_weights()
    if same and whole and (former.saved_step is not None or former.status == "finished"):
        return Resumption(former, None, True, scored, faults | missing_picture(directory, former, faults), [], lost)
    if former.status == "finished" and not whole:
        faults |= {WEIGHTS: faults.get(WEIGHTS, f"{directory.weights}: is missing")}
    checkpoint, skipped = find_latest(directory.checkpoints)
    if checkpoint is None:
        refuse_lost_work(directory, former, faults, skipped)
    return Resumption(former, checkpoint, False, scored, faults, skipped, lost)


def without_record(directory: RunDirectory) -> Resumption:
    """Return from where a run continues whose record is missing: from a checkpoint, if it wrote one."""
    checkpoint, skipped = find_latest(directory.checkpoints)
    faults = {directory.result.name: f"{directory.result}: is missing"} if checkpoint else {}
    return Resumption(None, checkpoint, faults=faults, skipped=skipped)


def check_scores(
    directory: RunDirectory, former: RunResult, faults: dict[str, str]
) -> tuple[frozenset[str], dict[str, str]]:
    """Return which evaluations have whole row scores, and the faults with that of `scores.json`.

    Generated texts are made by the same evaluations: where they are damaged, none is whole.
    """
    if TEXTS in faults:
        return frozenset(), faults
    try:
        scored = frozenset() if SCORES in faults else frozenset(read_scores(directory.scores))
    except StorageError as error:
        return frozenset(), faults | {SCORES: str(error)}
    if former.status == "finished" and (missing := former.metrics.keys() - scored):
        lacks = f"{directory.scores}: has no row scores of {', '.join(sorted(missing))}"
        return scored, faults | ({SCORES: lacks} if SCORES not in faults else {})
    return scored, faults


def check_metrics(directory: RunDirectory, faults: dict[str, str], verify: bool) -> list[str]:
    """Return a line on what is lost of `metrics.jsonl`. Raises StorageError for it if `verify`."""
    _, unreadable = read_lines(directory.metrics)
    numbers = ", ".join(map(str, unreadable[:5]))
    fault = faults.get(METRICS, f"{directory.metrics}: cannot be read in line {numbers}" if unreadable else None)
    if fault and verify:
        raise StorageError(f"{fault}; restore it, or {UNVERIFIED}")
    return [fault] if fault else []


def missing_picture(directory: RunDirectory, former: RunResult, faults: dict[str, str]) -> dict[str, str]:
    """Return the fault of a finished run that has no picture, though it logged losses."""
    if former.status != "finished" or directory.picture.exists() or PICTURE in faults or not directory.metrics.exists():
        return {}
    return {PICTURE: f"{directory.picture}: is missing"} if read_lines(directory.metrics)[0] else {}


def refuse_lost_work(directory: RunDirectory, former: RunResult, faults: dict[str, str], skipped: list[str]) -> None:
    """Raise StorageError if a run without a checkpoint has something that beginning again would lose."""
    if skipped:
        raise StorageError(f"{directory.path}: there is no intact checkpoint to resume from ({'; '.join(skipped)})")
    advice = "and there is no checkpoint to resume from; run.save_every writes checkpoints, --overwrite starts again"
    if former.status == "finished" and WEIGHTS in faults:
        raise StorageError(f"{faults[WEIGHTS]}, {advice}")
    if directory.weights.exists():
        raise StorageError(f"{directory.path}: training continues after step {former.progress.step}, {advice}")


def can_resume(folder: Path) -> bool:
    """Return whether a run has something to resume from, a checkpoint or the weights of its last step, and a record."""
    directory = RunDirectory(folder)
    try:
        if directory.result.exists():
            check_record(directory, directory.read_result())
        if find_faults(folder, [*RECORD, METRICS]) or read_lines(directory.metrics)[1]:
            return False
        whole = directory.has_weights() and not find_faults(folder, [WEIGHTS], contents=False)
    except StorageError:
        return False
    return whole or bool(list_steps(directory.checkpoints))
