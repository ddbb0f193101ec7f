"""A run's checkpoints: their content, writing them while training continues, restoring the latest complete one."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from peftlab.checkpoint.manifest import FileRecord
from peftlab.checkpoint.parts import Parts, load_own, load_whole
from peftlab.checkpoint.store import Checkpoint, refuse_full_disk, rotate, write_checkpoint
from peftlab.checkpoint.tensors import EncodedState, encode_state, load_state, save_state, write_state
from peftlab.checkpoint.writer import CheckpointWriter
from peftlab.errors import PeftlabError, StorageError
from peftlab.optimization.average import steps_in_mean
from peftlab.optimization.finite import check_weights
from peftlab.parameters.audit import Audit
from peftlab.parameters.divided import whole_count
from peftlab.parameters.trainable import trainable_parameters
from peftlab.reports import ResumeReport
from peftlab.runs.identity import count_row_processes, refuse_changes, why_inexact
from peftlab.runs.record import RunRecord
from peftlab.runs.setup import recount_steps
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
    from peftlab.world.base import World


# Of the state, what processes have parts of where they divide weights.
DIVIDED = ("weights", "optimizer", "buffers")
NOT_REPEATABLE = "CUDA's kernels need not give the same bytes twice; run.deterministic=true makes them"


class CheckpointSaver:
    """Saves a run's states: training waits for the copy, and a thread writes it while training continues.

    Where memory has no room for a copy, training waits for the writing too. The record's seconds contain how long
    training waited (`checkpoints_stalled`) and how long writing lasted (`checkpoints_written`). Leaving the context
    waits, on every process, for what is being written.
    """

    def __init__(self, record: RunRecord, recorder: Recorder, stop: Stop, identity: dict[str, Any], audit: Audit):
        self.record, self.recorder, self.stop = record, recorder, stop
        self.identity, self.audit = identity, audit
        self.writer = CheckpointWriter()
        record.settle = self.writer.finish
        self._saved = 0
        self._given_up = threading.Event()
        self._resumed: set[int] = set()

    def __enter__(self) -> CheckpointSaver:
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is not None:
            self._given_up.set()
        with self._timed("checkpoints_stalled"):
            self.writer.close(quietly=kind is not None)
        if kind is None:
            self.record.world.wait()  # a process that ended earlier would count as lost
        self.record.add_seconds("checkpoints_written", self.writer.seconds)

    def resumed(self, step: int) -> None:
        """Keep the checkpoint of `step`, from which the run resumes."""
        self._saved = step
        self._resumed.add(step)

    def check(self) -> None:
        """Raise StorageError if a write has failed."""
        self.writer.check()

    def save(self, setup: Setup) -> None:
        """Start to write the checkpoint of `setup`'s step; an earlier one is complete when this returns."""
        if setup.progress.step == self._saved:
            return
        check_weights(setup.model, setup.progress.step)
        with self._timed("checkpoints_stalled"):
            # The main process writes only after all have captured their states, at the same step.
            processes = self.record.world.gather([capture_process_state(self.recorder, self.audit)])
            state = capture_shared_state(setup)
            if setup.world.is_main or setup.world.divided:
                self._begin(setup, state, processes)
        self._saved = setup.progress.step
        self.stop.saving_seconds = self.writer.longest_seconds
        self.record.result.progress = setup.progress.model_copy()
        self.record.write()

    def _begin(self, setup: Setup, state: dict[str, Any], processes: list[Any]) -> None:
        self.writer.wait()  # frees the memory of the earlier copy
        copied = 2 * state_bytes(setup) < free_host_bytes()
        own = {name: state.pop(name) for name in DIVIDED if name in state} if setup.world.divided else None
        encoded = encode_state(state, "state", copy=copied)
        part = None if own is None else encode_state(own, "part", copy=copied)
        if setup.world.is_main:
            write = partial(self._write, self._protected(setup), encoded, processes, part)
        else:
            assert part is not None, "other processes write parts alone"
            write = partial(self._parts(setup.progress.step).write, setup.world.process, part)
        self.writer.start(write)
        if not copied:
            self.writer.wait()

    def _protected(self, setup: Setup) -> tuple[int, set[int]]:
        """Return the step that is saved, and the steps whose checkpoints stay."""
        progress, run, average = setup.progress, setup.recipe.run, setup.recipe.training.average
        protected = {*self._resumed, progress.step, progress.best_step or progress.step}
        if average.last is not None and run.save_every is not None:
            protected |= {*steps_in_mean(progress.step, run.save_every, average.last)}
        return progress.step, protected

    def _parts(self, step: int) -> Parts:
        return Parts(self.record.directory.checkpoints, step, self.record.world.processes, self._why_missing)

    def _why_missing(self, process: int) -> PeftlabError | None:
        """Return why a process will not write its part; None while it may."""
        if self._given_up.is_set():
            return StorageError(f"{self.record.directory.checkpoints}: process {process} did not write its part")
        error = self.record.launch.lost_error()
        return error if error is not None and process in error.lost else None

    def _write(
        self, what: tuple[int, set[int]], encoded: EncodedState, processes: list[Any], part: EncodedState | None
    ) -> None:
        step, protected = what
        parts, count = self._parts(step), 1 if part is None else self.record.world.processes

        def write(folder: Path) -> dict[str, FileRecord]:
            write_state(folder, "state", encoded)
            for number, state in enumerate(processes):
                save_state(folder, process_name(number), state)
            if part is None:
                return {}
            parts.write(self.record.world.process, part)
            return parts.collect(folder)

        root = self.record.directory.checkpoints
        needed = encoded.size_bytes + count * (part.size_bytes if part else 0)
        write_checkpoint(root, step, write, self.identity, needed_bytes=needed)
        self.record.directory.forget_former()
        rotate(root, self.record.recipe.run.keep_checkpoints, protected)

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.record.add_seconds(name, time.perf_counter() - started)


def state_bytes(setup: Setup) -> int:
    """Return the bytes of a checkpoint of `setup`, at most."""
    weights, optimizer = trainable_parameters(setup.model).values(), setup.recipe.training.optimizer
    copies = 1 if setup.recipe.training.average.ema is None else 2
    counts = ((weight.itemsize, whole_count(weight)) for weight in weights)
    return sum(copies * size * count + optimizer.count_saved_bytes(count) for size, count in counts)


def refuse_no_room(root: Path, setup: Setup) -> None:
    """Raise StorageError if the disk has no room for one checkpoint."""
    refuse_full_disk(root, state_bytes(setup))


def load_for(checkpoint: Checkpoint, world: World) -> dict[str, Any]:
    """Return a checkpoint's state: this process's parts of it where the same strategy wrote them, or all of it.

    Raises StorageError if it is damaged.
    """
    if checkpoint.manifest.facts["environment"].get("strategy") != world.strategy:
        return load_whole(checkpoint.path)
    return load_own(checkpoint.path, world.process, world.processes)


def process_state(checkpoint: Checkpoint, world: World) -> dict[str, Any]:
    """Return what `checkpoint` has of this process; without random states where fewer processes wrote it.

    Where other processes share the rows, the main one gets the losses of all that are not logged yet. All get the same
    audit: where weights are divided they observe gradients together.
    """
    environment = checkpoint.manifest.facts["environment"]
    shared, is_new = count_row_processes(environment), world.process >= environment["processes"]
    own = load_state(checkpoint.path, process_name(0 if is_new else world.process))
    if is_new:
        del own["random"]
    if shared != world.row_processes:
        states = [load_state(checkpoint.path, process_name(number))["recorder"] for number in range(shared)]
        losses = [torch.stack(parts).sum(0) for parts in zip(*(one["losses"] for one in states), strict=True)]
        own["recorder"]["losses"] = losses if world.is_main else [torch.zeros_like(one) for one in losses]
    return own


def process_name(process: int) -> str:
    """Return the name of what one process keeps in a checkpoint."""
    return f"process-{process:05}"


def restore(
    checkpoint: Checkpoint,
    setup: Setup,
    recorder: Recorder,
    audit: Audit,
    identity: dict[str, Any],
    epoch_rows: int,
) -> ResumeReport:
    """Restore `setup` to the state in `checkpoint`. Raises StorageError if it belongs to another run.

    The next step takes the rows after those of the former ones, also where these had more or fewer.
    """
    saved = checkpoint.manifest.facts
    refuse_changes(saved, identity)
    reasons = why_inexact(saved, identity)
    restore_shared_state(setup, load_for(checkpoint, setup.world))
    if setup.progress.rows != checkpoint.step * setup.rows.per_step:
        recount_steps(setup, epoch_rows)
    if checkpoint.step > setup.steps:
        raise StorageError(
            f"{checkpoint.path}: the run has done {checkpoint.step} steps, but the recipe asks for {setup.steps}; "
            f"set training.steps to {checkpoint.step} or more, or start a new run with another run.output"
        )
    reasons += restore_process_state(recorder, audit, process_state(checkpoint, setup.world))
    if not setup.world.repeatable:
        reasons.append(NOT_REPEATABLE)
    recorder.start(setup.steps, done=checkpoint.step)
    return ResumeReport(step=checkpoint.step, exact=not reasons, reasons=reasons)
