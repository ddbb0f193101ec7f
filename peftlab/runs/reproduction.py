"""A run made again from its record: what is different here, and whether the result is the same to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peftlab.errors import StorageError, UsageError
from peftlab.reports import RunResult
from peftlab.runs.digests import RECORD, SCORES, WEIGHTS, files_of, find_fault, read_digests, refuse_changed
from peftlab.runs.directory import RunDirectory
from peftlab.runs.environment import describe_environment
from peftlab.runs.reopen import load_run_recipe
from peftlab.runs.run import train
from peftlab.world.open import open_world

COMPARED = ("python", "platform", "versions", "commit", "device", "threads", "strategy", "processes")


def describe_run(path: Path) -> dict[str, Any]:
    """Return a finished run's `command`, `output` and what is `different` here: name to (there, here).

    Raises StorageError for a run that has not finished, or whose record has changed.
    """
    directory = RunDirectory.open(path)
    refuse_changed(path, RECORD)
    result = directory.read_result()
    if result.status != "finished":
        raise StorageError(
            f"{path}: the run is {result.status.replace('_', ' ')}; only a finished run can be reproduced"
        )
    if place := result.environment.get("imported"):
        raise UsageError(f"{path}: its weights were imported from {place}; make them again with their own trainer")
    recipe = load_run_recipe(directory)
    output = path.with_name(f"{path.name}-again")
    return {
        "run": str(path),
        "output": str(output),
        "command": f"peftlab train {directory.recipe} run.output={output}",
        "different": different_environment(result, describe_environment(open_world(recipe.run.device))),
    }


def different_environment(result: RunResult, here: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what of hardware and software differs from the run's, each as (there, here)."""
    there: dict[str, Any] = {}
    now: dict[str, Any] = {}
    for name in COMPARED:
        old, new = result.environment.get(name), here.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            there |= old
            now |= new
        else:
            there[name], now[name] = old, new
    return {name: (there.get(name), now[name]) for name in now if there.get(name) != now[name]}


def reproduce(path: Path, output: Path | None = None, overwrite: bool = False) -> dict[str, Any]:
    """Run a finished run's recipe again, and return `describe_run` with what the two results are to each other.

    `equal` says that weights and row scores are the same bytes; `files` are those that differ, `metrics` the metrics
    that do, name to (there, here).
    """
    found = describe_run(path)
    output = output or Path(found["output"])
    if output.resolve() == path.resolve():
        raise UsageError("--output: the run itself would be replaced; name another folder")
    directory = RunDirectory.open(path)
    again = train(load_run_recipe(directory, [f"run.output={output}"]), name=path.name, overwrite=overwrite)
    files = changed_files(path, output)
    former = directory.read_result().metrics
    metrics = {
        f"{when} {name}": (value, again.metrics.get(when, {}).get(name))
        for when, values in former.items()
        for name, value in values.items()
        if value != again.metrics.get(when, {}).get(name)
    }
    return found | {"output": str(output), "equal": not files and not metrics, "files": files, "metrics": metrics}


def changed_files(path: Path, again: Path) -> list[str]:
    """Return the files of weights and row scores that are not the same bytes in both runs."""
    manifest, names = read_digests(again), []
    if manifest is None:
        raise StorageError(f"{again}: the run has no digests")
    for part in (WEIGHTS, SCORES):
        own, other = files_of(path, part), files_of(again, part)
        names += sorted(own.keys() ^ other.keys())
        names += [name for name in own.keys() & other.keys() if find_fault(own[name], manifest.files[name])]
    return sorted(name for name in names if not is_context(name))


def is_context(name: str) -> bool:
    """Return whether a file of the weights folder is about the folder, such as the base's path, and has no weights."""
    return name.startswith(f"{WEIGHTS}/") and not name.endswith(".safetensors")
