"""`peftlab verify`: every file of a run compared with the run's own digests, and its figures with one another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from peftlab.checkpoint.manifest import NAME, verify
from peftlab.checkpoint.store import list_steps
from peftlab.errors import StorageError
from peftlab.runs.digests import describe_extra, find_extra, find_fault, is_loaded, read_digests
from peftlab.runs.directory import RunDirectory
from peftlab.runs.figures import check_record, compare_figures
from peftlab.runs.reopen import load_run_recipe
from peftlab.runs.scores import read_scores
from peftlab.training.metrics_file import read_lines


def examine(folder: Path) -> dict[str, Any]:
    """Return `files` (name to fault, None for a whole one), `faults`, `notes` and whether the run has `digests`.

    Notes are lines on other files among the run's weights that do no harm.
    Raises StorageError for a folder that is not a run's.
    """
    directory = RunDirectory.open(folder)
    files = dict(examine_files(directory))
    faults = [fault for fault in files.values() if fault]
    if not faults and (fault := fault_of(lambda: examine_figures(directory))):
        faults.append(fault)
    digests = (folder / NAME).exists()
    notes = [] if faults or not digests else list(note_others(folder))
    return {"run": str(folder), "files": files, "faults": faults, "notes": notes, "digests": digests}


def note_others(folder: Path) -> Iterator[str]:
    """Yield a line for each file among the weights that the run did not write."""
    for path in find_extra(folder, read_digests(folder)):
        yield f"{path}: is not a file of the run"


def examine_files(directory: RunDirectory) -> Iterator[tuple[str, str | None]]:
    """Yield every file with a digest, and every checkpoint, with what is wrong with it."""
    folder = directory.path
    fault = fault_of(lambda: read_digests(folder))
    if fault:
        yield NAME, fault
    manifest = None if fault else read_digests(folder)
    for name, record in manifest.files.items() if manifest else ():
        yield name, find_fault(folder / name, record)
    for path in find_extra(folder, manifest):
        if is_loaded(path):
            yield path.relative_to(folder).as_posix(), describe_extra(path)
    for path in list_steps(directory.checkpoints).values():
        yield path.relative_to(folder).as_posix(), fault_of(lambda path=path: verify(path))  # type: ignore[misc]


def examine_figures(directory: RunDirectory) -> None:
    """Raise StorageError for a record, scores or metrics that cannot be read, or that contradict one another."""
    result = directory.read_result()
    check_record(directory, result)
    load_run_recipe(directory)
    compare_figures(directory, result, read_scores(directory.scores))
    if unreadable := read_lines(directory.metrics)[1]:
        raise StorageError(f"{directory.metrics}: cannot be read in line {', '.join(map(str, unreadable[:5]))}")
    if result.status == "finished" and not directory.has_weights():
        raise StorageError(f"{directory.weights}: is missing or empty, and the run is finished")


def fault_of(act: Callable[[], object]) -> str | None:
    """Return the line of the StorageError that `act` raises, None if it raises none."""
    try:
        act()
    except StorageError as error:
        return str(error)
    return None
