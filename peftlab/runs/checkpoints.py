"""A run's checkpoints: what they hold, writing them beside the training, going on from the latest whole one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.checkpoint.store import Checkpoint, find_latest, refuse_full_disk, rotate, write_checkpoint
from peftlab.checkpoint.tensors import EncodedState, encode_state, load_state, save_state, write_state
from peftlab.checkpoint.writer import CheckpointWriter
from peftlab.errors import StorageError
from peftlab.memory.measure import tensor_bytes
from peftlab.optimization.finite import check_weights
from peftlab.parameters.trainable import trainable_parameters
from peftlab.reports import ResumeReport
from peftlab.runs.identity import refuse_changes, why_inexact
from peftlab.runs.record import RunRecord
from peftlab.training.recorder import Recorder
from peftlab.training.state import (
    capture_process_state,
    capture_shared_state,
    restore_process_state,
    restore_shared_state,
)
from peftlab.world.hardware import free_host_bytes

if TYPE_CHECKING:
    from peftlab.training.setup import Setup
    from peftlab.training.stop import Stop

# Moments and master copies beside each trained weight.
BYTES_PER_WEIGHT_BYTE = 3


class CheckpointSaver:
    """Saves a run's states: copied while training waits, then written by a thread while it goes on.

    A state that memory has no room for twice is written while training waits. The run's seconds tell how long
    training waited (`checkpoints_stalled`) and how long writing took (`checkpoints_written`). Leaving the context
    waits, on every process, for what is being written.
    """

    def __init__(self, record: RunRecord, recorder: Recorder, stop: Stop, identity: dict[str, Any]):
        self.record, self.recorder, self.stop, self.identity = record, recorder, stop, identity
        self.writer = CheckpointWriter()
        self._saved = 0
        self._resumed: set[int] = set()

    def __enter__(self) -> CheckpointSaver:
        return self

    def __exit__(self, kind, *_) -> None:
        with self._timed("checkpoints_stalled"):
            self.writer.close(quietly=kind is not None)
        if kind is None:
            self.record.world.wait()  # a process that left would count as lost
        self.record.add_seconds("checkpoints_written", self.writer.seconds)

    def resumed(self, step: int) -> None:
        """Keep the checkpoint that the run goes on from."""
        self._saved = step
        self._resumed.add(step)

    def check(self) -> None:
        """Raise StorageError if a write that was begun has failed."""
        self.writer.check()

    def save(self, setup: Setup) -> None:
        """Begin the checkpoint of the step that `setup` is at; a former one is whole when this returns."""
        if setup.progress.step == self._saved:
            return
        check_weights(setup.model, setup.progress.step)
        with self._timed("checkpoints_stalled"):
            # All processes have given their states, at the same step, before the main one writes a byte.
            processes = self.record.world.gather([capture_process_state(self.recorder)])
            if setup.world.is_main:
                self._begin(setup, processes)
        self._saved = setup.progress.step
        self.stop.saving_seconds = self.writer.longest_seconds
        self.record.result.progress = setup.progress.model_copy()
        self.record.write()

    def _begin(self, setup: Setup, processes: list[Any]) -> None:
        self.writer.wait()  # gives the former copy's memory back
        beside = 2 * state_bytes(setup) < free_host_bytes()
        held = encode_state(capture_shared_state(setup), "state", copy=beside)
        progress = setup.progress
        protected = {*self._resumed, progress.step, progress.best_step or progress.step}
        self.writer.start(partial(self._write, progress.step, held, processes, protected))
        if not beside:
            self.writer.wait()

    def _write(self, step: int, held: EncodedState, processes: list[Any], protected: set[int]) -> None:
        def write(folder: Path) -> None:
            write_state(folder, "state", held)
            for number, state in enumerate(processes):
                save_state(folder, f"process-{number:05}", state)

        root = self.record.directory.checkpoints
        write_checkpoint(root, step, write, self.identity, needed_bytes=held.size_bytes)
        rotate(root, self.record.recipe.run.keep_checkpoints, protected)

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.record.add_seconds(name, time.perf_counter() - started)


def state_bytes(setup: Setup) -> int:
    """Return what a checkpoint of `setup` takes at most."""
    return BYTES_PER_WEIGHT_BYTE * tensor_bytes(trainable_parameters(setup.model).values())


def refuse_no_room(root: Path, setup: Setup) -> None:
    """Raise StorageError before the first step if not even one checkpoint has room on the disk."""
    refuse_full_disk(root, state_bytes(setup))


def find(root: Path) -> tuple[Checkpoint, list[str]]:
    """Return the latest whole checkpoint, and what is wrong with later ones. Raises StorageError without any."""
    checkpoint, faults = find_latest(root)
    if checkpoint is None:
        told = f" ({'; '.join(faults)})" if faults else "; checkpoints come with run.save_every"
        raise StorageError(f"{root.parent}: there is no checkpoint to resume from{told}")
    return checkpoint, faults


def restore(checkpoint: Checkpoint, setup: Setup, recorder: Recorder, identity: dict[str, Any]) -> ResumeReport:
    """Put `setup` back to where `checkpoint` was written. Raises StorageError if it is of another run."""
    saved = checkpoint.manifest.facts
    refuse_changes(saved, identity)
    if checkpoint.step > setup.steps:
        raise StorageError(
            f"{checkpoint.path}: the run has done {checkpoint.step} steps and the recipe asks for {setup.steps}; "
            f"ask for at least {checkpoint.step}, or start anew with another run.output"
        )
    reasons = why_inexact(saved, identity)
    restore_shared_state(setup, load_state(checkpoint.path, "state"))
    own = checkpoint.path / f"process-{setup.world.process:05}.json"
    if own.exists():
        reasons += restore_process_state(recorder, load_state(checkpoint.path, own.stem))
    recorder.start(setup.steps, done=checkpoint.step)
    return ResumeReport(step=checkpoint.step, exact=not reasons, reasons=reasons)
