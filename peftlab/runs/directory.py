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

from pydantic import ValidationError

from peftlab.checkpoint.lock import RunLock
from peftlab.checkpoint.manifest import NAME as MANIFEST
from peftlab.checkpoint.store import clean_leftovers, list_steps
from peftlab.errors import StorageError
from peftlab.files import decode_json, parse_json, read_text, sync, sync_files, why, write_atomically
from peftlab.reports import RunResult, Status

MARKER = ".peftlab"
GENERATIONS = "generations.jsonl"
SNAPSHOT = "memory_snapshot.pickle"
TAGS = "tags.json"
OWN_FILES = (
    MANIFEST,
    "result.json",
    "recipe.yaml",
    "metrics.jsonl",
    "scores.json",
    GENERATIONS,
    "loss.png",
    SNAPSHOT,
    TAGS,
)
OWN_FOLDERS = ("weights", "last", "checkpoints", "trackers", "held_out")
# Where an earlier run waits until the one that replaces it has saved something.
FORMER = ".former"
# Temporary names of `write_atomically` and `writing`, which remain when a process is killed.
HALF_MARKER = re.compile(r"\.\.peftlab\.\d+")
HALF_FILE = re.compile(rf"\.({'|'.join(map(re.escape, (MARKER, *OWN_FILES)))})\.\d+|\.process-\d{{5}}\.json(\.\d+)?")
HALF_FOLDER = re.compile(r"\.(weights|last|checkpoints|trackers|held_out)\.[a-z0-9_]{8}")


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
        self.last = path / "last"
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
    def reopen(cls, path: Path) -> RunDirectory:
        """Find a run to resume, also one that was killed before its first record. Raises StorageError without one."""
        return cls(path) if os.path.isfile(path / MARKER) else cls.open(path)

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Find a run. Raises StorageError if there is none."""
        if not os.path.isfile(path / MARKER) or not os.path.isfile(path / "result.json"):
            raise StorageError(
                f"{path} is not a run directory of peftlab (no {MARKER} and result.json in it); "
                "name the folder of a run"
            )
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
        for name in (*OWN_FILES, *OWN_FOLDERS, MARKER, FORMER):
            path = self.path / name
            if path.is_symlink():
                raise StorageError(f"run.output: {path} is a link; a run writes in its own directory only")
            if path.exists() and not (path.is_file() if name in (*OWN_FILES, MARKER) else path.is_dir()):
                kind = "file" if name in (*OWN_FILES, MARKER) else "folder"
                raise StorageError(f"run.output: {path} is not a {kind} of a run; remove it")

    def lock(self) -> RunLock:
        """Return the lock that a run keeps while it writes here."""
        return RunLock(self.path / ".lock")

    def make_room(self, overwrite: bool = False) -> None:
        """Empty the directory for a new run. Raises StorageError if it contains a run's work, unless `overwrite`.

        That work is kept in `.former` until `forget_former` is called.
        """
        if not self.contains_work():
            self.clear()
            return
        if not overwrite:
            ways = "set run.output=OTHER, or --overwrite to replace it"
            if list_steps(self.checkpoints) or self._is_unfinished():
                ways = f"--resume to continue it, {ways}"
            raise StorageError(f"run.output: {self.path} already contains a run; {ways}")
        former = self.path / FORMER
        former.mkdir()
        for name in (*OWN_FILES, *OWN_FOLDERS):
            if (self.path / name).exists():
                os.rename(self.path / name, former / name)

    def contains_work(self) -> bool:
        """Return whether a user would lose anything: a run that ended before it saved has nothing to lose."""
        if self.weights.exists() or list_steps(self.checkpoints):
            return True
        return self.result.exists() and not self._is_unfinished()

    def has_weights(self) -> bool:
        """Return whether the folder of weights contains tensors, and no file there is empty."""
        files = [path for path in self.weights.rglob("*") if path.is_file()] if self.weights.is_dir() else []
        return any(path.suffix == ".safetensors" for path in files) and all(path.stat().st_size for path in files)

    def refuse_outdated_weights(self) -> None:
        """Raise StorageError for weights of an earlier end, after which training continued and has not ended."""
        result = self.read_result()
        if self.has_weights() and result.status != "finished" and result.saved_step is None:
            raise StorageError(
                f"{self.path}: its weights are those of an earlier end; training has continued since then to step "
                f"{result.progress.step} and was not finished; train its recipe with --resume"
            )

    def _is_unfinished(self) -> bool:
        """Return whether the record says that something remains to be done; one that cannot be read says nothing."""
        try:
            return self.read_result().status != "finished"
        except StorageError:
            return False

    def forget_former(self) -> None:
        """Remove the run that this one replaces: this one has saved something."""
        shutil.rmtree(self.path / FORMER, ignore_errors=True)

    def restore_former(self) -> None:
        """Put the run back that a new one should have replaced, if the new one has saved nothing."""
        former = self.path / FORMER
        if not former.is_dir():
            return
        if self.weights.exists() or list_steps(self.checkpoints):
            self.forget_former()
            return
        for name in (*OWN_FILES, *OWN_FOLDERS):
            if (former / name).exists():
                self._remove(name)
                os.rename(former / name, self.path / name)
        former.rmdir()

    def clear(self) -> None:
        """Remove everything that a run writes, but for one that waits in `.former`."""
        for name in (*OWN_FILES, *OWN_FOLDERS):
            self._remove(name)

    def _remove(self, name: str) -> None:
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
        self.restore_former()

    def write_ending(self, process: int, status: Status, error: str) -> None:
        """Write why a process ended, for the main process to add to the record."""
        self._write(self._ending(process), json.dumps([status, error]))

    def read_ending(self, process: int) -> tuple[Status, str] | None:
        """Return the status and error that a process wrote; None if it wrote none."""
        try:
            status, error = decode_json(self._ending(process).read_bytes())
            return status, error
        except (OSError, ValueError, TypeError):
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
            raise StorageError(f"{path}: cannot be written: {why(error)}") from None

    def read_result(self) -> RunResult:
        """Return the run's record. Raises StorageError if it cannot be read."""
        text = read_text(self.result)
        parse_json(self.result, text)
        try:
            return RunResult.model_validate_json(text, extra="ignore")
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise StorageError(f"{self.result}: is damaged: {place + ': ' if place else ''}{first['msg']}") from None

    def add_generations(self, when: str, rows: Sequence[dict[str, Any]]) -> None:
        """Replace the generated texts of one evaluation, a line each, and keep those of the others."""
        kept = [line for line, other in self._read_generations() if other != when]
        lines = [json.dumps({"when": when, **row}, ensure_ascii=False) for row in rows]
        self._write(self.generations, "".join(f"{line}\n" for line in (*kept, *lines)))

    def _read_generations(self) -> list[tuple[str, str]]:
        """Return the lines of generated texts and the evaluation of each; none where the file cannot be read."""
        try:
            lines = self.generations.read_text(encoding="utf-8").split("\n")[:-1]
            return [(line, decode_json(line)["when"]) for line in lines]
        except (OSError, ValueError, KeyError, TypeError):
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
            raise StorageError(f"{folder}: cannot be written: {why(error)}") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _remove_whole(folder: Path) -> None:
    """Remove a folder; a reader never sees it with some of its files."""
    renamed = folder.with_name(f".{folder.name}.{os.getpid():08}")
    os.rename(folder, renamed)
    shutil.rmtree(renamed)


def written_at(path: Path) -> float | None:
    """Return when the record of the run in a folder was last written, in seconds of the clock; None without one."""
    try:
        return RunDirectory(path).result.stat().st_mtime
    except OSError:
        return None


@contextlib.contextmanager
def open_directory(path: Path, main: bool, overwrite: bool, resume: bool) -> Iterator[RunDirectory]:
    """Yield the run directory, locked by the main process, and emptied unless its run resumes."""
    if not main:
        yield RunDirectory(path)
        return
    directory = RunDirectory.reopen(path) if resume else RunDirectory.claim(path)
    directory.refuse_links()
    with directory.lock():
        directory.clean()
        if not resume:
            directory.make_room(overwrite)
        try:
            yield directory
        finally:
            directory.restore_former()
