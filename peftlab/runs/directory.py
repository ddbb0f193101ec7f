"""The run directory: what lies where, and that nothing of anybody else's is ever touched."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftlab.checkpoint.lock import RunLock
from peftlab.errors import StorageError
from peftlab.files import write_atomically
from peftlab.recipe.schema import Recipe
from peftlab.reports import RunResult

MARKER = ".peftlab"
OWN_FILES = ("result.json", "recipe.yaml", "metrics.jsonl", "scores.json", "loss.png", "log.txt")
OWN_FOLDERS = ("weights", "checkpoints", "trackers")


class RunDirectory:
    """One run's files. `claim` makes the directory or takes it up again, `open` finds a run in it."""

    def __init__(self, path: Path):
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.result = path / "result.json"
        self.metrics = path / "metrics.jsonl"
        self.scores = path / "scores.json"
        self.picture = path / "loss.png"
        self.weights = path / "weights"
        self.checkpoints = path / "checkpoints"
        self.trackers = path / "trackers"

    @classmethod
    def claim(cls, path: Path) -> RunDirectory:
        """Make or find a run directory. Raises StorageError rather than touch what is not this project's."""
        directory = cls(path)
        try:
            directory._mark()
        except OSError as error:
            raise StorageError(f"run.output: cannot write to {path}: {error.strerror}; choose another folder") from None
        return directory

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Find a run. Raises StorageError where there is none."""
        if not (path / MARKER).is_file() or not (path / "result.json").is_file():
            raise StorageError(f"{path} is not a run directory of peftlab (no {MARKER} and result.json in it)")
        return cls(path)

    def _mark(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise StorageError(f"run.output: {self.path} is a file; choose a folder")
        if self.path.is_dir() and any(self.path.iterdir()) and not (self.path / MARKER).is_file():
            raise StorageError(
                f"run.output: {self.path} holds files that are no run of peftlab; choose another folder"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / MARKER, json.dumps({"schema": 1}) + "\n")

    def lock(self) -> RunLock:
        """Return the lock that a run holds while it writes here."""
        return RunLock(self.path / ".lock")

    def make_room(self, overwrite: bool = False) -> None:
        """Empty the directory for a new run. Raises StorageError if a run's work is here, unless told to go on."""
        if self.holds_work() and not overwrite:
            ways = "set run.output=OTHER, or --overwrite to replace it"
            if self.checkpoints.exists():
                ways = f"--resume to go on with it, {ways}"
            raise StorageError(f"run.output: {self.path} already holds a run; {ways}")
        self._clear()

    def holds_work(self) -> bool:
        """Whether there is anything that a user could miss: a run that failed before it saved holds nothing."""
        if self.weights.exists() or self.checkpoints.exists():
            return True
        return self.result.exists() and self.read_result().status in ("running", "finished")

    def _clear(self) -> None:
        for name in (*OWN_FILES, *OWN_FOLDERS):
            entry = self.path / name
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)

    def write_result(self, result: RunResult) -> None:
        write_atomically(self.result, result.model_dump_json(indent=2) + "\n")

    def read_result(self) -> RunResult:
        try:
            return RunResult.model_validate_json(self.result.read_text(encoding="utf-8"), extra="ignore")
        except (OSError, ValueError) as error:
            raise StorageError(f"{self.result}: cannot be read ({type(error).__name__}); the run is damaged") from None

    def add_scores(self, name: str, scores: dict[str, Any]) -> None:
        """Keep the row-by-row scores of one evaluation beside those of the others."""
        kept = json.loads(self.scores.read_text(encoding="utf-8")) if self.scores.exists() else {}
        write_atomically(self.scores, json.dumps(kept | {name: scores}) + "\n")

    @contextlib.contextmanager
    def writing(self, folder: Path) -> Iterator[Path]:
        """Give a temporary folder that takes the place of `folder` once everything in it is written."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            yield temporary
            os.chmod(temporary, 0o755)
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(temporary, folder)
        except OSError as error:
            raise StorageError(f"{folder}: cannot be written: {error.strerror or error}; free some space") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def open_directory(path: Path, main: bool, overwrite: bool, resume: bool) -> Iterator[RunDirectory]:
    """Give the run directory, locked by the main process, emptied unless its run goes on."""
    if not main:
        yield RunDirectory(path)
        return
    directory = RunDirectory.open(path) if resume else RunDirectory.claim(path)
    with directory.lock():
        if not resume:
            directory.make_room(overwrite)
        yield directory


def is_finished(directory: RunDirectory, recipe: Recipe) -> bool:
    """Whether the run there has done all the steps that `recipe` asks for."""
    result = directory.read_result()
    asked = recipe.training.model_dump(mode="json")
    return result.status == "finished" and all(result.recipe["training"][k] == asked[k] for k in ("steps", "epochs"))
