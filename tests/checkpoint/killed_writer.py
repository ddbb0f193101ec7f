"""Runs that are killed while they write checkpoints: `python -m tests.checkpoint.killed_writer KIND FOLDER ...`.

One process forks every victim, so that a kill costs milliseconds and no interpreter start. Free of torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from peftlab.checkpoint.lock import RunLock
from peftlab.checkpoint.manifest import verify
from peftlab.checkpoint.store import clean_leftovers, find_latest, rotate, write_checkpoint
from peftlab.reports import RunResult
from peftlab.runs.directory import RunDirectory, open_directory

# The C functions through which the store changes the disk: killed before and after each of their calls.
WRITING_CALLS = {"open", "write", "flush", "__exit__", "close", "fsync", "mkdir", "rename", "unlink", "rmdir"}
STATE_BYTES = 300_000


def state_after(steps: int) -> bytes:
    """Return the state that a run has after so many steps: each follows from the one before."""
    state = hashlib.sha256(b"start").digest()
    for _ in range(steps):
        state = hashlib.sha256(state).digest()
    return state


def write_state(state: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name in ("weights", "optimizer"):
            with open(folder / name, "wb") as file:
                file.write(state)
                file.write(state * (STATE_BYTES // len(state)))

    return write


def fork(work: Callable[[], None]) -> int:
    """Run `work` in a child that never comes back here."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException as error:
        print(f"the child failed: {error!r}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def kill_at_call(number: int) -> None:
    """Kill this process at the given call or return of a writing function, counted from here."""
    left = number

    def count(_, event, function):
        nonlocal left
        if event in ("c_call", "c_return") and function.__name__ in WRITING_CALLS:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)


def kill_at_boundaries(folder: Path, scenario: str) -> list[dict]:
    """Kill one writer at each boundary in turn; tell what a next run finds after each."""
    former = folder / "former"
    for step in (8, 9):
        write_checkpoint(former, step, write_state(state_after(step)), {"run": 1})
    found = []
    while True:
        root = folder / str(len(found))
        shutil.copytree(former, root)
        status = os.waitpid(fork(lambda: write_until_killed(root, scenario, len(found))), 0)[1]  # noqa: B023
        if os.WIFEXITED(status):
            assert status == 0, "the writer failed by itself"
            return found
        found.append(look(root))


def write_until_killed(root: Path, scenario: str, boundary: int) -> None:
    if scenario == "clean":
        shutil.copytree(root / "step-000008", root / ".step-000010.1.partial")
        shutil.copytree(root / "step-000009", root / ".step-000009.1.former")
    kill_at_call(boundary)
    if scenario == "next":
        write_checkpoint(root, 10, write_state(state_after(10)), {"run": 2})
        rotate(root, keep=1, protected=set())
    elif scenario == "same":
        write_checkpoint(root, 9, write_state(state_after(9)), {"run": 2})
    else:
        clean_leftovers(root)
    sys.setprofile(None)


def kill_in_directory(folder: Path) -> list[dict]:
    """Kill at each boundary in turn what makes a run directory and ends a run in it; tell what a next run finds."""
    found = []
    while True:
        path = folder / str(len(found))
        if len(found) % 2:
            use_directory(path, "old")  # every other victim replaces a run
        status = os.waitpid(fork(lambda: use_until_killed(path, len(found))), 0)[1]  # noqa: B023
        if os.WIFEXITED(status):
            assert status == 0, "the writer failed by itself"
            return found
        found.append(look_in_directory(path))


def use_until_killed(path: Path, boundary: int) -> None:
    kill_at_call(boundary)
    use_directory(path, "new")
    sys.setprofile(None)


def use_directory(path: Path, name: str) -> None:
    """Do what a run does with its directory, from the claim to the finished record."""
    with open_directory(path, main=True, overwrite=True, resume=False) as directory:
        record = RunResult(status="running", name=name, recipe={}, environment={})
        directory.write_recipe(name)
        directory.write_result(record)
        with directory.writing(directory.weights) as temporary:
            for part in ("adapter", "tokenizer"):
                (temporary / part).write_text(name)
        directory.write_result(record.model_copy(update={"status": "finished"}))


def look_in_directory(path: Path) -> dict:
    """Tell what lies in a run directory, and whether a next run may have it and leaves it clean."""
    directory = RunDirectory(path)
    status = directory.read_result().status if directory.result.exists() else None
    weights = sorted(part.read_text() for part in directory.weights.iterdir()) if directory.weights.exists() else []
    use_directory(path, "next")
    left = {entry.name for entry in path.iterdir()} - {".peftlab", ".lock", "recipe.yaml", "result.json", "weights"}
    return {"status": status, "weights": weights, "left": sorted(left)}


def look(root: Path) -> dict:
    """Do what the next run does first, and tell what it found."""
    named = [path for path in root.iterdir() if path.name.startswith("step-")]
    whole = sum(verify(path) is not None for path in named)
    clean_leftovers(root)
    latest, faults = find_latest(root)
    left = sorted(path.name for path in root.iterdir() if path.name.startswith("."))
    return {
        "step": latest.step if latest else 0,
        "right": not latest or (latest.path / "weights").read_bytes().startswith(state_after(latest.step)),
        "run": latest and latest.manifest.facts["run"],
        "faults": faults,
        "left": left,
        "named": len(named),
        "whole": whole,
    }


def train_until_killed(folder: Path, report: int) -> None:
    """Be a run: take the lock, clean, resume from the newest checkpoint, save at every step."""
    with RunLock(folder / "lock"):
        root = folder / "checkpoints"
        clean_leftovers(root)
        latest, _ = find_latest(root)
        resumed = latest.step if latest else 0
        state = (latest.path / "weights").read_bytes()[:32] if latest else state_after(0)
        for step in range(resumed + 1, sys.maxsize):
            state = hashlib.sha256(state).digest()
            write_checkpoint(root, step, write_state(state), {"run": 1}, 2 * STATE_BYTES)
            os.write(report, step.to_bytes(8))
            rotate(root, keep=2, protected={step, resumed})


def kill_at_instants(folder: Path, kills: int, seed: int) -> list[dict]:
    """Kill a run at random instants and let it go on, again and again in the same folder."""
    instants, found, acknowledged = random.Random(seed), [], 0
    folder.mkdir()
    for _ in range(kills):
        reading, writing = os.pipe()
        child = fork(lambda: train_until_killed(folder, writing))  # noqa: B023
        os.close(writing)
        time.sleep(instants.uniform(0, 0.06))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "the run failed by itself"
        while word := os.read(reading, 8):
            acknowledged = int.from_bytes(word)
        os.close(reading)
        if (folder / "checkpoints").exists():
            found.append(look(folder / "checkpoints") | {"acknowledged": acknowledged})
    return found


if __name__ == "__main__":
    kind, place, *rest = sys.argv[1:]
    if kind == "instants":
        result = kill_at_instants(Path(place), *map(int, rest))
    elif kind == "directory":
        result = kill_in_directory(Path(place))
    else:
        result = kill_at_boundaries(Path(place), *rest)
    print(json.dumps(result))
