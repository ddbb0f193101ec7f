"""The state of a run whose processes each have a part of every weight: written by all of them, read whole or in parts.

`state` has what is the same everywhere, and `part-00001` what process 1 has, in which a divided tensor is a part
(`peftlab.parameters.divided`). Every process writes and hashes its own, beside the others, into a folder where the
main one waits for them and takes them into the checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from peftlab.checkpoint.manifest import FileRecord, record_file
from peftlab.checkpoint.store import parts_folder
from peftlab.checkpoint.tensors import EncodedState, load_state, write_state
from peftlab.errors import PeftlabError, StorageError
from peftlab.files import why, write_atomically
from peftlab.parameters.divided import is_part

POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Parts:
    """The place where the processes of a run leave their parts of the checkpoint of a step.

    `why_missing` returns why the part of a process will never come: its error; None while it may come.
    """

    root: Path
    step: int
    processes: int
    why_missing: Callable[[int], PeftlabError | None]

    @property
    def folder(self) -> Path:
        return parts_folder(self.root, self.step)

    def write(self, process: int, encoded: EncodedState) -> None:
        """Write the part of a process, and what says that it is complete. Raises StorageError if that fails."""
        name = name_of(process)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_state(self.folder, name, encoded)
            files = sorted(self.folder.glob(f"{name}.*"))
            records = {path.name: record_file(path, sync=True).model_dump() for path in files}
            self._tell(process, {"files": records})
        except (OSError, StorageError) as error:
            fault = str(error) if isinstance(error, StorageError) else f"{self.folder / name}: {why(error)}"
            with contextlib.suppress(OSError):
                self._tell(process, {"fault": fault})
            raise StorageError(fault) from None

    def _tell(self, process: int, content: dict[str, Any]) -> None:
        write_atomically(self.folder / f"{name_of(process)}-complete", json.dumps(content))

    def collect(self, target: Path) -> dict[str, FileRecord]:
        """Move all parts into `target` as soon as they are complete, and return their records by name.

        Raises StorageError for one that could not be written, and the error of `why_missing` for one that never comes.
        """
        found: dict[str, FileRecord] = {}
        try:
            for process in range(self.processes):
                for name, record in self._wait_for(process).items():
                    os.rename(self.folder / name, target / name)
                    found[name] = FileRecord(**record)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
        return found

    def _wait_for(self, process: int) -> dict[str, Any]:
        path = self.folder / f"{name_of(process)}-complete"
        while not path.exists():
            if (reason := self.why_missing(process)) and not path.exists():
                raise reason
            time.sleep(POLL_SECONDS)
        content = json.loads(path.read_text(encoding="utf-8"))
        if fault := content.get("fault"):
            raise StorageError(fault)
        return content["files"]


def name_of(process: int) -> str:
    return f"part-{process:05}"


def count_parts(folder: Path) -> int:
    """Return how many parts a checkpoint has; 0 if its state is whole."""
    return len(list(folder.glob("part-*.json")))


def load_whole(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's state with whole tensors, whoever wrote it. Raises StorageError if it is damaged."""
    state, count = load_state(folder, "state"), count_parts(folder)
    return state | join([load_state(folder, name_of(process)) for process in range(count)]) if count else state


def load_own(folder: Path, process: int, processes: int) -> dict[str, Any]:
    """Return the state with this process's parts, if as many processes wrote it as read it; else a whole one."""
    if count_parts(folder) != processes:
        return load_whole(folder)
    return load_state(folder, "state") | load_state(folder, name_of(process))


def join(trees: Sequence[Any]) -> Any:
    """Return the tree of which each process has one with its parts; what is not divided is the first one's."""
    first = trees[0]
    if is_part(first):
        return torch.cat([tree["part"] for tree in trees], first.get("dimension", 0)).reshape(first["shape"])
    if isinstance(first, dict):
        return {key: join([tree[key] for tree in trees]) for key in first}
    return first
