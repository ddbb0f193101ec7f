"""A run's training: the longest rows first, then the loop, from the latest checkpoint if the run goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from peftlab.errors import MethodError
from peftlab.memory.probe import Probe, join_reports
from peftlab.parameters.audit import Audit
from peftlab.quantities import format_change
from peftlab.reports import AuditReport, MemoryReport
from peftlab.runs import checkpoints
from peftlab.runs.bench import Bench
from peftlab.runs.checkpoints import CheckpointSaver
from peftlab.runs.identity import describe_identity
from peftlab.runs.longest import held_out
from peftlab.runs.setup import build_setup, renew_optimizer
from peftlab.training.loop import train as run_loop
from peftlab.training.preflight import measure_longest
from peftlab.training.setup import Setup
from peftlab.training.step import check_weights

if TYPE_CHECKING:
    from peftlab.runs.run import Run


def train_model(run: Run, bench: Bench, model: nn.Module) -> Setup:
    """Take the longest rows once, then run the loop; return the setup as the last step left it."""
    audit = Audit(model)
    identity = describe_identity(run.recipe, bench, audit, run.result.environment)
    with CheckpointSaver(run, identity) as saver:
        setup = build_setup(bench, model, run.stop, saver)
        measure(run, bench, model, setup)
        if run.resume:
            saver.resumed(continue_from_checkpoint(run, setup, identity))
        if run.recipe.run.save_every:
            checkpoints.refuse_no_room(run.directory.path, setup)
        run.result.progress = run_loop(setup, run.recorder, audit)
        check_weights(setup)
        if run.recorder.audit:
            run.result.audit = run.recorder.audit
            tell_audit(run, run.recorder.audit)
        if run.recipe.run.save_every and setup.progress.step == setup.steps:
            saver.save(setup)
    return setup


def measure(run: Run, bench: Bench, model: nn.Module, setup: Setup) -> None:
    """Take the longest rows through the model, and leave `setup` as at its start."""
    run.watch.probe, run.watch.optimizer = Probe(run.accelerator.device), setup.optimizer
    measured = measure_longest(setup, model, held_out(bench, model), run.watch.probe)
    run.result.memory["measured"] = join_reports([bench.load, measured])
    for line in (*measured.notes, describe_memory(run.result.memory)):
        run.note(line)
    renew_optimizer(setup)
    run.watch.probe, run.watch.optimizer = None, setup.optimizer
    run.recorder.start(setup.steps)


def describe_memory(memory: dict[str, MemoryReport]) -> str:
    """Return one line: what the longest rows took, and how far the prediction was off."""
    measured, predicted = memory["measured"].peak_bytes, memory.get("predicted")
    line = f"memory with the longest rows: {measured / 2**20:,.1f} MiB measured"
    if predicted is None:
        return line
    foreseen = max(predicted.phases.get(phase, 0) for phase in memory["measured"].phases)
    return f"{line}, {foreseen / 2**20:,.1f} MiB predicted ({format_change(foreseen / measured - 1)})"


def continue_from_checkpoint(run: Run, setup: Setup, identity: dict[str, Any]) -> int:
    """Restore the latest whole checkpoint and return its step."""
    checkpoint, faults = checkpoints.find(run.directory.checkpoints)
    for fault in faults:
        run.note(f"passed over: {fault}")
    report = checkpoints.restore(checkpoint, setup, run.recorder, identity)
    if run.accelerator.is_main_process:
        run.recorder.rewind(checkpoint.step)
    run.result.resumes.append(report)
    exactly = "exactly" if report.exact else f"not exactly: {'; '.join(report.reasons)}"
    run.note(f"resumed after step {report.step} of {setup.steps} ({exactly})")
    return checkpoint.step


def tell_audit(run: Run, audit: AuditReport) -> None:
    """Say what the audit found. Raises MethodError if a frozen tensor changed: nothing after it can be trusted."""
    if audit.frozen_changed:
        raise MethodError(
            f"the audit found {len(audit.frozen_changed)} frozen tensors changed after {audit.steps} steps "
            f"({audit.frozen_changed[0]}, ...); this run cannot be trusted"
        )
    for what, names in (("got no gradient", audit.without_gradient), ("did not move", audit.unmoved)):
        if names:
            run.note(f"audit: {len(names)} trainable tensors {what} in {audit.steps} steps: {names[0]}, ...")
