"""Several recipes beside each other, each in a process of its own, and one list of results."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from peftlab.errors import StorageError
from peftlab.files import write_atomically
from peftlab.recipe.load import load_recipe, recipe_name
from peftlab.reports import RunResult
from peftlab.runs.directory import RunDirectory
from peftlab.runs.picture import draw_memory

SUMMARY = "comparison.json"
PICTURE = "memory.png"


def compare(
    recipes: Sequence[Path], overrides: Sequence[str] = (), output: Path | None = None, *, overwrite: bool = False
) -> list[RunResult]:
    """Run every recipe and return their results in order; a run that fails is a row that says so.

    Each runs in its own process, so that none pays for another's memory. The runs lie in `output` (default
    `runs/comparison`), what each printed in its `log.txt`, and their
    memory as a picture beside them.
    """
    output = output or Path("runs/comparison")
    names = unique_names(recipes)
    refuse_finished(output, names, overwrite)
    results = []
    for number, (path, name) in enumerate(zip(recipes, names, strict=True), start=1):
        print(f"[{number}/{len(names)}] {name} ...", file=sys.stderr, end=" ", flush=True)
        results.append(run_alone(path, overrides, name, output / name))
        print(summarise(results[-1]), file=sys.stderr, flush=True)
    write_atomically(output / SUMMARY, json.dumps([result.model_dump() for result in results], indent=2) + "\n")
    draw_memory([(short_label(result, results), result.memory) for result in results], output / PICTURE)
    return results


def short_label(result: RunResult, among: Sequence[RunResult]) -> str:
    """Return the method's name where it tells the runs apart, else the run's."""
    types = [other.recipe["method"]["type"] for other in among]
    own = result.recipe["method"]["type"]
    return own if types.count(own) == 1 else result.name


def unique_names(recipes: Sequence[Path]) -> list[str]:
    """Return a name for every recipe; one that comes twice gets a number."""
    names = [recipe_name(path) for path in recipes]
    return [name if names.count(name) == 1 else f"{name}-{i}" for i, name in enumerate(names, start=1)]


def refuse_finished(output: Path, names: Sequence[str], overwrite: bool) -> None:
    """Raise StorageError before the first run rather than after it if a later one has no place."""
    taken = [name for name in names if RunDirectory(output / name).holds_work()]
    if taken and not overwrite:
        raise StorageError(
            f"{output} already holds {len(taken)} of these runs ({taken[0]}, ...); name another --output, or "
            "--overwrite to replace them"
        )


def run_alone(path: Path, overrides: Sequence[str], name: str, folder: Path) -> RunResult:
    """Run one recipe in a new process and return its result, whatever became of it."""
    command = [sys.executable, "-m", "peftlab", "train", str(path), *overrides, f"run.output={folder}", "--overwrite"]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        directory = RunDirectory.open(folder)
        result = directory.read_result()
        (folder / "log.txt").write_text(done.stderr, encoding="utf-8")
    except StorageError:
        result = RunResult(status="failed", name=name, recipe=load_recipe(path, overrides).model_dump(), environment={})
    if done.returncode and not result.error:
        result.error = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        result.status = "failed"
    result.name = name
    return result


def summarise(result: RunResult) -> str:
    """Return one line on what became of a run."""
    if result.status != "finished":
        return f"{result.status}: {result.error}"
    before, after = (result.metrics.get(when, {}).get("loss") for when in ("before", "after"))
    losses = f", held-out loss {before:.3f} -> {after:.3f}" if before is not None and after is not None else ""
    return f"{result.seconds['total']:.0f} s{losses}"
