"""The run directory: its files, and the guarantee that no other file is ever changed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from peftlab.checkpoint.lock import RunLock
from peftlab.checkpoint.store import clean_leftovers
from peftlab.errors import StorageError
from peftlab.files import sync, sync_files, write_atomically
from peftlab.recipe.schema import Recipe
from peftlab.reports import RunResult, Status
from peftlab.runs.identity import refuse_changed_recipe

MARKER = ".peftlab"
GENERATIONS = "generations.jsonl"
SNAPSHOT = "memory_snapshot.pickle"
OWN_FILES = ("result.json", "recipe.yaml", "metrics.jsonl", "scores.json", GENERATIONS, "loss.png", SNAPSHOT)
OWN_FOLDERS = ("weights", "checkpoints", "trackers", "held_out")
# Temporary names of `write_atomically` and `writing`, which remain when a process is killed.
HALF_MARKER = re.compile(r"\.\.peftlab\.\d+")
HALF_FILE = re.compile(
    r"\.(\.peftlab|result\.json|recipe\.yaml|metrics\.jsonl|scores\.json|generations\.jsonl)\.\d+"
    r"|\.process-\d{5}\.json(\.\d+)?"
)
HALF_FOLDER = re.compile(r"\.(weights|checkpoints|trackers|held_out)\.[a-z0-9_]{8}")


def text_scores(when: str) -> str:
    """Return the name in `scores.json` of the scores of generated texts at one time of measurement."""
    return f"{when}_texts"


class RunDirectory:
    """One run's files. `claim` makes or reopens the directory, `open` finds a run in it."""

    def __init__(self, path: Path):
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.result = path / "result.json"
        self.metrics = path / "metrics.jsonl"
        self.scores = path / "scores.json"
        self.generations = path / GENERATIONS
        self.picture = path / "loss.png"
        self.memory_snapshot = path / SNAPSHOT
        self.weights = path / "weights"
        self.checkpoints = path / "checkpoints"
        self.trackers = path / "trackers"
        self.held_out = path / "held_out"

    @classmethod
    def claim(cls, path: Path) -> RunDirectory:
        """Make or find a run directory. Raises StorageError if it contains files that are not a run's."""
        directory = cls(path)
        try:
            directory._mark()
        except OSError as error:
            raise StorageError(f"run.output: cannot write to {path}: {error.strerror}; choose another folder") from None
        return directory

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Find a run. Raises StorageError if there is none."""
        if not os.path.isfile(path / MARKER) or not os.path.isfile(path / "result.json"):
            raise StorageError(f"{path} is not a run directory of peftlab (no {MARKER} and result.json in it)")
        return cls(path)

    def _mark(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise StorageError(f"run.output: {self.path} is a file; choose a folder")
        if not (self.path / MARKER).is_file() and self._contains_other_files():
            raise StorageError(
                f"run.output: {self.path} contains files that are not a run of peftlab; choose another folder"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / MARKER, json.dumps({"schema": 1}) + "\n")

    def _contains_other_files(self) -> bool:
        names = os.listdir(self.path) if self.path.is_dir() else ()
        return not all(HALF_MARKER.fullmatch(name) for name in names)

    def refuse_links(self) -> None:
        """Raise StorageError if anything that a run writes or removes here is a link."""
        for name in (*OWN_FILES, *OWN_FOLDERS, MARKER):
            if (self.path / name).is_symlink():
                raise StorageError(f"run.output: {self.path / name} is a link; a run writes in its own directory only")

    def lock(self) -> RunLock:
        """Return the lock that a run keeps while it writes here."""
        return RunLock(self.path / ".lock")

    def make_room(self, overwrite: bool = False) -> None:
        """Empty the directory for a new run. Raises StorageError if it contains a run's work, unless `overwrite`."""
        if self.contains_work() and not overwrite:
            ways = "set run.output=OTHER, or --overwrite to replace it"
            if self.checkpoints.exists():
                ways = f"--resume to continue it, {ways}"
            raise StorageError(f"run.output: {self.path} already contains a run; {ways}")
        self._clear()

    def contains_work(self) -> bool:
        """Return whether a user would lose anything: a run that failed before it saved has nothing to lose."""
        if self.weights.exists() or self.checkpoints.exists():
            return True
        return self.result.exists() and self.read_result().status in ("running", "finished")

    def _clear(self) -> None:
        for name in (*OWN_FILES, *OWN_FOLDERS):
            entry = self.path / name
            if entry.is_dir() and not entry.is_symlink():
                _remove_whole(entry)
            else:
                entry.unlink(missing_ok=True)

    def clean(self) -> None:
        """Remove the partial files of killed processes. Requires the lock."""
        for entry in list(os.scandir(self.path)):
            if HALF_FILE.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                os.unlink(entry)
            elif HALF_FOLDER.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry)
        clean_leftovers(self.checkpoints)

    def write_ending(self, process: int, status: Status, error: str) -> None:
        """Write why a process ended, for the main process to add to the record."""
        self._write(self._ending(process), json.dumps([status, error]))

    def read_ending(self, process: int) -> tuple[Status, str] | None:
        """Return the status and error that a process wrote; None if it wrote none."""
        try:
            status, error = json.loads(self._ending(process).read_text(encoding="utf-8"))
            return status, error
        except (OSError, ValueError):
            return None

    def _ending(self, process: int) -> Path:
        return self.path / f".process-{process:05}.json"

    def write_recipe(self, text: str) -> None:
        self._write(self.recipe, text)

    def write_result(self, result: RunResult) -> None:
        self._write(self.result, result.model_dump_json(indent=2) + "\n")

    def _write(self, path: Path, text: str) -> None:
        try:
            write_atomically(path, text)
        except OSError as error:
            raise StorageError(f"{path}: cannot be written: {error.strerror or error}; free some space") from None

    def read_result(self) -> RunResult:
        try:
            return RunResult.model_validate_json(self.result.read_text(encoding="utf-8"), extra="ignore")
        except (OSError, ValueError) as error:
            raise StorageError(f"{self.result}: cannot be read ({type(error).__name__}); the run is damaged") from None

    def add_scores(self, name: str, scores: dict[str, Any]) -> None:
        """Add the scores by row of one evaluation to those of the others."""
        kept = json.loads(self.scores.read_text(encoding="utf-8")) if self.scores.exists() else {}
        write_atomically(self.scores, json.dumps(kept | {name: scores}) + "\n")

    def add_generations(self, when: str, rows: Sequence[dict[str, Any]]) -> None:
        """Replace the generated texts of one evaluation, a line each, and keep those of the others."""
        kept = [line for line in self._read_generations() if json.loads(line)["when"] != when]
        lines = [json.dumps({"when": when, **row}, ensure_ascii=False) for row in rows]
        write_atomically(self.generations, "".join(f"{line}\n" for line in (*kept, *lines)))

    def _read_generations(self) -> list[str]:
        """Return the lines of generated texts; none where an interrupted run left a file that cannot be read."""
        try:
            lines = self.generations.read_text(encoding="utf-8").split("\n")[:-1]
            return [line for line in lines if isinstance(json.loads(line), dict)]
        except (OSError, ValueError):
            return []

    @contextlib.contextmanager
    def writing(self, folder: Path) -> Iterator[Path]:
        """Yield a temporary folder that replaces `folder` once everything in it is written."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            yield temporary
            os.chmod(temporary, 0o755)
            sync_files(temporary)
            if folder.exists():
                _remove_whole(folder)
            os.replace(temporary, folder)
            sync(folder.parent)
        except OSError as error:
            raise StorageError(f"{folder}: cannot be written: {error.strerror or error}; free some space") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _remove_whole(folder: Path) -> None:
    """Remove a folder; a reader never sees it with some of its files."""
    renamed = folder.with_name(f".{folder.name}.{os.getpid():08}")
    os.rename(folder, renamed)
    shutil.rmtree(renamed)


@contextlib.contextmanager
def open_directory(path: Path, main: bool, overwrite: bool, resume: bool) -> Iterator[RunDirectory]:
    """Yield the run directory, locked by the main process, and emptied unless its run resumes."""
    if not main:
        yield RunDirectory(path)
        return
    directory = RunDirectory.open(path) if resume else RunDirectory.claim(path)
    directory.refuse_links()
    with directory.lock():
        directory.clean()
        if not resume:
            directory.make_room(overwrite)
        yield directory


def is_finished(directory: RunDirectory, recipe: Recipe) -> bool:
    """Return whether the run has done all steps that `recipe` asks for. Raises StorageError if it is another run's."""
    result, asked = directory.read_result(), recipe.model_dump(mode="json")
    refuse_changed_recipe(result.recipe, asked)
    same = all(result.recipe["training"][key] == asked["training"][key] for key in ("steps", "epochs"))
    return same and result.status == "finished"
