"""The runs below a folder: what each is, which of them a user asks for, their differences, what can be removed."""

from __future__ import annotations

import fcntl
import json
import operator
import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from peftlab.errors import StorageError, UsageError, nearest
from peftlab.files import parse_json, read_text, write_atomically
from peftlab.nested import differences, flatten
from peftlab.reports import RunResult
from peftlab.runs.directory import FORMER, MARKER, TAGS, RunDirectory

CONDITION = re.compile(r"\s*([\w.\-]+)\s*(<=|>=|!=|=|<|>)\s*(.*?)\s*")
COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "=": operator.eq, "!=": operator.ne,
}  # fmt: skip
TAG = re.compile(r"[\w.+\-]{1,40}")
ENDED = ("failed", "diverged", "out_of_memory", "killed")


@dataclass(frozen=True)
class Entry:
    """One run directory; `fault` is why its record cannot be read, and then `result` is None."""

    path: Path
    result: RunResult | None = None
    fault: str | None = None
    tags: tuple[str, ...] = ()
    in_use: bool = False

    @property
    def state(self) -> str:
        """The record's status; `killed` where it says running and no process has the run."""
        if self.result is None:
            return "damaged"
        return "killed" if self.result.status == "running" and not self.in_use else self.result.status

    @property
    def metric(self) -> str:
        """The name of the recipe's first metric."""
        wanted = self.result.recipe.get("evaluation", {}).get("metrics") if self.result else None
        return wanted[0] if wanted else "loss"

    @cached_property
    def values(self) -> dict[str, Any]:
        """Everything that can be asked for by name: figures, metrics (`after.loss`) and fields of the recipe."""
        found: dict[str, Any] = {"run": str(self.path), "state": self.state, "tags": ",".join(self.tags)}
        if self.result is None:
            return found | {"fault": self.fault}
        result = self.result
        measured, parameters = result.memory.get("measured"), result.parameters
        metrics = result.metrics.get("test_after") or result.metrics.get("after") or {}
        found |= {
            "name": result.name,
            "trainable": parameters.trainable if parameters else None,
            "stored_bytes": parameters.stored_bytes if parameters else None,
            "peak_bytes": measured.peak_bytes if measured else None,
            "seconds": result.seconds.get("total"),
            "step": result.progress.step,
            "metric": metrics.get(self.metric),
            "ended": datetime.fromtimestamp(modified(self.path)).isoformat(" ", "minutes"),
        }
        return found | flatten(result.metrics) | flatten(result.recipe)


@dataclass
class Removal:
    """What of a run is not needed, and its bytes."""

    path: Path
    what: str
    bytes: int = field(default=0)


def find_runs(root: Path) -> list[Entry]:
    """Return the runs at or below a folder, by path. Raises StorageError where there is no such folder."""
    if not root.is_dir():
        raise StorageError(f"{root} is not a folder; name one that contains runs")
    found = []
    for folder, folders, files in os.walk(root):
        if MARKER in files and "result.json" in files:
            found.append(read_entry(Path(folder)))
            folders.clear()  # a run has no runs inside
        folders[:] = sorted(name for name in folders if not name.startswith("."))
    return sorted(found, key=lambda entry: entry.path)


def read_entry(path: Path) -> Entry:
    """Return a run's entry; a record that cannot be read costs that run alone."""
    directory = RunDirectory(path)
    try:
        return Entry(path, directory.read_result(), tags=read_tags(path), in_use=is_in_use(path))
    except StorageError as error:
        return Entry(path, fault=str(error))


def modified(path: Path) -> float:
    """Return when a run's record was last written."""
    return (path / "result.json").stat().st_mtime


def is_in_use(path: Path) -> bool:
    """Return whether a process has the run's lock."""
    try:
        descriptor = os.open(path / ".lock", os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def select(entries: Iterable[Entry], conditions: Sequence[str]) -> list[Entry]:
    """Return the runs that meet every condition, `KEY=VALUE` or one with `!=`, `<`, `<=`, `>`, `>=`.

    Raises UsageError for a condition that is none, and for a name that no run has.
    """
    kept = list(entries)
    known = {key for entry in kept for key in entry.values}
    for text in conditions:
        match = CONDITION.fullmatch(text)
        if match is None:
            raise UsageError(f"--where {text}: write KEY=VALUE, or KEY with !=, <, <=, > or >= and a value")
        refuse_unknown(match[1], known, "--where")
        kept = [entry for entry in kept if meets(entry, *match.groups())]
    return kept


def refuse_unknown(key: str, known: set[str], option: str) -> None:
    if known and key not in known:
        raise UsageError(f"{option} {key}: no run has this value{nearest(key, sorted(known))}")


def meets(entry: Entry, key: str, sign: str, wanted: str) -> bool:
    """Return whether a run's value compares with the wanted one as `sign` says; a missing value only differs."""
    value = entry.values.get(key)
    if key == "tags":
        return (wanted in entry.tags) == (sign != "!=")
    if value is None or isinstance(value, (list, dict)):
        return sign == "!=" or wanted in ("null", "none") and value is None and sign == "="
    if isinstance(value, bool):
        return COMPARE[sign](str(value).lower(), wanted.lower())
    if isinstance(value, (int, float)):
        try:
            return COMPARE[sign](value, float(wanted))
        except ValueError:
            return sign == "!="
    return COMPARE[sign](str(value), wanted)


def sort(entries: Sequence[Entry], key: str, descending: bool) -> list[Entry]:
    """Return the runs by a value; those without it come last. Raises UsageError for a name that no run has."""
    refuse_unknown(key, {name for entry in entries for name in entry.values}, "--sort")
    having = [entry for entry in entries if entry.values.get(key) is not None]
    numbers = all(isinstance(entry.values[key], (int, float)) for entry in having)
    having.sort(key=lambda entry: entry.values[key] if numbers else str(entry.values[key]), reverse=descending)
    return having + [entry for entry in entries if entry.values.get(key) is None]


def compare_two(one: Entry, other: Entry) -> tuple[dict[str, tuple[Any, Any]], dict[str, tuple[Any, Any]]]:
    """Return what differs between two runs by name: fields of their recipes, and results.

    Raises StorageError for a run whose record cannot be read.
    """
    for entry in (one, other):
        if entry.result is None:
            raise StorageError(str(entry.fault))
    assert one.result and other.result, "refused above"
    recipes = differences(one.result.recipe, other.result.recipe)
    figures = ("state", "trainable", "stored_bytes", "peak_bytes", "seconds", "step")
    first, second = (
        {name: entry.values.get(name) for name in figures} | flatten(entry.result.metrics if entry.result else {})
        for entry in (one, other)
    )
    return recipes, differences(first, second)


def read_tags(path: Path) -> tuple[str, ...]:
    """Return a run's tags. Raises StorageError if their file is damaged."""
    file = path / TAGS
    if not file.exists():
        return ()
    tags = parse_json(file, read_text(file))
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise StorageError(f"{file}: is not a list of tags; remove it")
    return tuple(tags)


def change_tags(path: Path, tags: Sequence[str], remove: bool) -> tuple[str, ...]:
    """Add tags to a run, or remove them; return those that it has then. Raises UsageError for an invalid name."""
    RunDirectory.open(path)
    if wrong := [tag for tag in tags if not TAG.fullmatch(tag)]:
        raise UsageError(f"{wrong[0]!r}: a tag has up to 40 letters, digits, dots, plus and minus signs")
    present = read_tags(path)
    kept = [tag for tag in present if tag not in tags] if remove else [*dict.fromkeys([*present, *tags])]
    try:
        write_atomically(path / TAGS, json.dumps(kept) + "\n")
    except OSError as error:
        raise StorageError(f"{path / TAGS}: cannot be written: {error.strerror}") from None
    return tuple(kept)


def find_removable(entries: Sequence[Entry]) -> list[Removal]:
    """Return what can be removed: checkpoints of finished runs, and whole runs that ended with nothing saved."""
    found = []
    for entry in entries:
        directory = RunDirectory(entry.path)
        # A run that was killed while it replaced another keeps that one until the next command restores it.
        if entry.in_use or entry.result is None or (entry.path / FORMER).exists():
            continue
        if entry.state == "finished" and directory.has_weights() and directory.checkpoints.is_dir():
            found.append(Removal(directory.checkpoints, "checkpoints of a finished run"))
        elif entry.state in ENDED and not directory.has_weights() and not directory.checkpoints.is_dir():
            found.append(Removal(entry.path, f"{entry.state.replace('_', ' ')}, nothing saved"))
    for one in found:
        one.bytes = sum(path.stat().st_size for path in one.path.rglob("*") if path.is_file() and not path.is_symlink())
    return found


def remove(removals: Sequence[Removal]) -> None:
    """Remove what `find_removable` returned. Raises StorageError for a run that a process has meanwhile, or a link."""
    for one in removals:
        run = one.path if (one.path / MARKER).exists() else one.path.parent
        if one.path.is_symlink():
            raise StorageError(f"{one.path} is a link; remove it yourself")
        with RunDirectory(run).lock():
            try:
                shutil.rmtree(one.path)
            except OSError as error:
                raise StorageError(f"{error.filename}: cannot be removed: {error.strerror}") from None
