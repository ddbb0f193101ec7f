"""A run's training: the longest rows first, then the loop, from the latest checkpoint if the run resumes."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from peftlab.checkpoint.store import Checkpoint
from peftlab.errors import MethodError
from peftlab.memory.cuda import snapshot
from peftlab.memory.probe import Probe, join_reports
from peftlab.optimization.finite import check_weights
from peftlab.parameters.audit import Audit
from peftlab.quantities import format_change, number
from peftlab.reports import AuditReport, MemoryReport
from peftlab.runs import checkpoints
from peftlab.runs.bench import Bench
from peftlab.runs.checkpoints import CheckpointSaver
from peftlab.runs.identity import describe_identity
from peftlab.runs.longest import held_out
from peftlab.runs.measured import describe_trial, find_measured, has_room, keep_measured
from peftlab.runs.record import RunRecord
from peftlab.runs.setup import build_setup, renew_optimizer
from peftlab.training.loop import train as run_loop
from peftlab.training.preflight import measure_longest
from peftlab.training.recorder import Recorder
from peftlab.training.setup import Setup
from peftlab.training.stop import Stop


def train_model(
    record: RunRecord,
    recorder: Recorder,
    stop: Stop,
    bench: Bench,
    model: nn.Module,
    checkpoint: Checkpoint | None,
) -> Setup:
    """Measure the longest rows, then run the loop, from `checkpoint` if there is one; return the setup at its end."""
    audit, saving = Audit(model), record.recipe.run.save_every
    identity = describe_identity(record.recipe, bench, audit, record.result.environment)
    wanted = record.recipe.run.memory_snapshot and record.world.is_main
    with (
        snapshot(record.directory.memory_snapshot if wanted else None),
        CheckpointSaver(record, recorder, stop, identity, audit) as saver,
    ):
        setup = build_setup(bench, model, stop, saver)
        with stop.at_once():
            measure(record, recorder, bench, model, setup)
        if checkpoint is not None:
            epoch_rows = bench.dataset.order(record.recipe.run.seed).epoch_rows
            continue_from_checkpoint(record, recorder, setup, audit, identity, checkpoint, epoch_rows)
            saver.resumed(checkpoint.step)
        if saving:
            checkpoints.refuse_no_room(record.directory.path, setup)
        record.result.progress = setup.progress
        recorder.first_step = record.note_first_step
        record.result.progress = run_loop(setup, recorder, audit, partial(keep_audit, record))
        check_weights(setup.model, setup.progress.step)
        if saving and (setup.progress.step == setup.steps or setup.progress.ended_early):
            saver.save(setup)
    return setup


def measure(record: RunRecord, recorder: Recorder, bench: Bench, model: nn.Module, setup: Setup) -> None:
    """Add the memory of the longest rows' steps to the record, measured now or by an earlier run where there is room.

    `setup` is as new afterwards.
    """
    predicted = record.result.memory.get("predicted")
    rows, watch, measured = held_out(bench, model), record.watch, None
    name = describe_trial(setup, bench, rows, record.result.environment) if has_room(bench, predicted) else None
    if name is not None and (measured := find_measured(name)) is not None:
        watch.optimizer = setup.optimizer
        record.note("no trial steps: there is room, and an earlier run of this recipe measured its longest rows")
    if measured is None:
        watch.probe, watch.optimizer = Probe(record.world.device), setup.optimizer
        measured = measure_longest(setup, model, rows, watch.probe)
        renew_optimizer(setup)
        watch.probe, watch.optimizer = None, setup.optimizer
        if name is not None:
            keep_measured(name, measured)
    record.result.memory["measured"] = join_reports([bench.load, measured])
    for line in (*measured.notes, describe_memory(record.result.memory)):
        record.note(line)
    recorder.start(setup.steps)


def describe_memory(memory: dict[str, MemoryReport]) -> str:
    """Return one line: the measured memory of the longest rows, and the error of the prediction."""
    measured, predicted = memory["measured"].peak_bytes, memory.get("predicted")
    line = f"memory with the longest rows: {measured / 2**20:,.1f} MiB measured"
    if predicted is None:
        return line
    planned = max(predicted.phases.get(phase, 0) for phase in memory["measured"].phases)
    return f"{line}, {planned / 2**20:,.1f} MiB predicted ({format_change(planned / measured - 1)})"


def continue_from_checkpoint(
    record: RunRecord,
    recorder: Recorder,
    setup: Setup,
    audit: Audit,
    identity: dict[str, Any],
    checkpoint: Checkpoint,
    epoch_rows: int,
) -> None:
    """Restore a checkpoint, and note whether the run resumes exactly. An audit that is in the record stays."""
    report = checkpoints.restore(checkpoint, setup, recorder, audit, identity, epoch_rows)
    former = record.result.audit
    audit.finished = former is not None and former.steps <= checkpoint.step
    if record.lost:
        report = report.model_copy(update={"exact": False, "reasons": [*report.reasons, *record.lost]})
    record.result.resumes.append(report)
    exactly = "exactly" if report.exact else f"not exactly: {'; '.join(report.reasons)}"
    record.note(f"resumed after step {report.step} of {setup.steps} ({exactly})")


def keep_audit(record: RunRecord, audit: AuditReport) -> None:
    """Add what the audit found to the record, at once.

    Raises MethodError if a frozen tensor changed: nothing after it can be trusted.
    """
    record.result.audit = audit
    record.write()
    if audit.frozen_changed:
        raise MethodError(
            f"the audit found {len(audit.frozen_changed)} frozen tensors changed after {audit.steps} steps "
            f"({audit.frozen_changed[0]}, ...); this run cannot be trusted"
        )
    steps = number(audit.steps, "step")
    for what, names in (("got no gradient", audit.without_gradient), ("did not move", audit.unmoved)):
        if names:
            tensors, more = number(len(names), "trainable tensor"), ", ..." if len(names) > 1 else ""
            record.note(f"audit: {tensors} {what} in {steps}: {names[0]}{more}")
