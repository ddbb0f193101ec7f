"""Results of PEFT's method comparison (MetaMathQA): its JSON files read beside a comparison.

Its keys: https://github.com/huggingface/peft/tree/main/method_comparison. A file is one run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peftlab.errors import StorageError, one_line
from peftlab.files import parse_json, read_text

SUCCESS = "success"
FULL = "full fine-tuning"
# Of our metrics, those that its accuracy is: the share of answers that are right.
ACCURACIES = ("exact_match", "accuracy")
LARGEST = 1e18  # a larger number in such a file is a fault, as NaN is
# Files of 2025 name the memory after CUDA.
MEMORY = ("accelerator_memory_max", "cuda_memory_max")
SHOWN = 3


@dataclass(frozen=True)
class BenchResult:
    """One imported run: what it trained, took and reached. Memory is reserved by the device's allocator at most.

    A cost is None where the file does not know it: 0 bytes of memory are not measured, as on a CPU. `data` are the
    names of its data sets.
    """

    name: str
    method: str
    model: str
    trainable: int | None
    stored_bytes: int
    memory_bytes: int | None
    seconds: float
    accuracy: float
    forgetting: float | None
    created: datetime
    data: tuple[str, ...] = ()


def read_results(paths: Iterable[Path], notes: list[str]) -> list[BenchResult]:
    """Return the results in files, and in the files of folders: of runs of one experiment the latest.

    Runs that did not succeed, older ones of an experiment, and files of another kind in a folder add a line to
    `notes`. Raises StorageError for a named file of another kind, and for a folder of which no file can be read.
    """
    latest: dict[tuple[Any, ...], tuple[Path, BenchResult]] = {}
    older: list[Path] = []
    for path, found in _read_each(paths, notes):
        key = (found.name, found.model, found.method, found.data)
        known = latest.get(key)
        if known is None or found.created >= known[1].created:
            latest[key] = path, found
            older += [known[0]] if known else []
        else:
            older.append(path)
    if older:
        names = ", ".join(path.name for path in older[:SHOWN]) + (", …" if len(older) > SHOWN else "")
        notes.append(f"--import: of each experiment the latest run is shown; left out as older: {names} ({len(older)})")
    return sorted((found for _, found in latest.values()), key=lambda one: (-one.accuracy, one.name))


def _read_each(paths: Iterable[Path], notes: list[str]) -> Iterator[tuple[Path, BenchResult]]:
    """Yield each file once with its result."""
    seen: set[Path] = set()
    for place in paths:
        files = [path for path in list_files([place]) if path.resolve() not in seen]
        seen |= {path.resolve() for path in files}
        faults: list[StorageError] = []
        for path in files:
            try:
                found = read_result(path, notes)
            except StorageError as error:
                faults.append(error)
                continue
            if found is not None:
                yield path, found
        if len(faults) == len(files) > 0:
            more = f" (and none of {len(files)} files in {place} can be read)" if len(files) > 1 else ""
            raise StorageError(f"{faults[0]}{more}")
        notes += [f"--import: {fault}; it is left out" for fault in faults]


def list_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield files, and the .json files of folders. Raises StorageError for a path without any."""
    for path in paths:
        if path.is_dir():
            inside = sorted(one for one in path.glob("*.json") if not one.is_dir())
            if not inside:
                raise StorageError(f"--import {path}: the folder has no .json file")
            yield from inside
        elif not path.exists():
            raise StorageError(f"--import {path}: the file does not exist")
        else:
            yield path


def read_result(path: Path, notes: list[str]) -> BenchResult | None:
    """Return the result in a file; None, with a note, of a run that did not succeed."""
    values = _Values(path, parse_json(path, read_text(path).removeprefix("\ufeff")))
    status = values.get("train_info.status", str)
    if status != SUCCESS:
        notes.append(f"{path}: the run's status is {status!r}; it is left out")
        return None
    metrics = values.get("train_info.metrics", list)
    last = _Values(path, metrics[-1] if metrics else {}, "train_info.metrics[-1].")
    config = values.get("run_info.peft_config", dict, None)
    memory = next((key for key in MEMORY if values.get(f"train_info.{key}", int, None) is not None), MEMORY[0])
    return BenchResult(
        name=values.get("run_info.experiment_name", str),
        method=FULL if config is None else _Values(path, config, "run_info.peft_config.").get("peft_type", str),
        model=values.get("run_info.train_config.model_id", str),
        trainable=values.size("train_info.num_trainable_params", int, None),
        stored_bytes=values.size("train_info.file_size", int),
        memory_bytes=values.size(f"train_info.{memory}", int) or None,
        seconds=float(values.size("train_info.train_time", float)),
        accuracy=float(last.size("test accuracy", float, largest=1)),
        forgetting=last.get("forgetting", float, None),
        created=values.time("run_info.created_at"),
        data=tuple(sorted(values.get("meta_info.dataset_info", dict, {}))),
    )


REQUIRED = object()


class _Values:
    """The values of a file by key path; one that is missing or of another type is an error with its place."""

    def __init__(self, path: Path, values: Any, place: str = ""):
        self.path, self.values, self.place = path, values, place

    def get(self, key: str, kind: type, default: Any = REQUIRED) -> Any:
        value = self.values
        for part in [key] if self.place else key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is None and default is not REQUIRED:
            return default
        right = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
        if not right or (kind in (int, float) and not abs(value) < LARGEST):
            raise self.fault(key, value, "a number" if kind in (int, float) else f"a {kind.__name__}")
        return value

    def size(self, key: str, kind: type, default: Any = REQUIRED, largest: float = LARGEST) -> Any:
        """Return a number that is not negative, nor above `largest`."""
        value = self.get(key, kind, default)
        if value is not None and not 0 <= value <= largest:
            raise self.fault(
                key, value, f"a number from 0 to {largest:g}" if largest < LARGEST else "no negative number"
            )
        return value

    def time(self, key: str) -> datetime:
        """Return a time; one without a zone is UTC."""
        text = self.get(key, str)
        try:
            found = datetime.fromisoformat(text)
        except ValueError:
            raise self.fault(key, text, "a time as 2026-05-04T10:00:00+00:00") from None
        return found if found.tzinfo else found.replace(tzinfo=UTC)

    def fault(self, key: str, value: Any, right: str) -> StorageError:
        what = "is missing" if value is None else f"is {one_line(json.dumps(value), 60)}"
        return StorageError(
            f"{self.path}: {self.place}{key} {what}; a result of PEFT's method comparison (MetaMathQA) has {right} "
            "there"
        )
