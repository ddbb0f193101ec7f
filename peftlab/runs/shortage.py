"""A run out of memory: what was allocated at that moment, in which phase, and what would have fitted."""

from __future__ import annotations

from peftlab.errors import OutOfMemoryError
from peftlab.memory.cuda import read_phase
from peftlab.memory.fit import Change, remedies
from peftlab.memory.measure import MemoryMeter, bytes_by_category, tensor_bytes
from peftlab.quantities import format_bytes
from peftlab.reports import MemoryReport
from peftlab.runs.watch import Watch

# The plan underestimated this run: what is proposed may need this fraction of what was planned.
MARGIN = 0.9


def explain_shortage(error: BaseException, watch: Watch) -> OutOfMemoryError:
    """Return the error that a user sees, a line each for phase, ledger and what would have fitted.

    The ledger and the changes also go into `watch.memory`, as `out_of_memory`.
    """
    report = ledger_at_shortage(watch)
    changes = what_fits(watch, report)
    report.remedies = [change.describe() for change in changes]
    watch.memory["out_of_memory"] = report
    (phase,) = report.phases
    recipe = watch.recipe
    lines = [
        f"out of memory in phase {phase.replace('_', ' ')}, at training.batch_size={recipe.training.batch_size} and "
        f"data.max_length={recipe.data.max_length}: {first_line(error)}",
        f"allocated then: {describe_ledger(report)}",
        f"would have fitted, by the plan: {'; '.join(report.remedies)}" if changes else without_plan(watch),
    ]
    return OutOfMemoryError("\n".join(lines))


def ledger_at_shortage(watch: Watch) -> MemoryReport:
    """Return the ledger at that moment: the probe's if it was measuring, else the state and the device's peak."""
    phase, categories = watch.phase, watch.probe.ledger.shortage if watch.probe else None
    watched = categories is not None
    if categories is None:
        categories = state_of(watch)
    elif watch.probe and watch.probe.current:
        phase = watch.probe.current
    found = read_phase(watch.device)
    if found is not None:
        peak = found.allocated_bytes
    else:
        peak = sum(categories.values()) if watched else MemoryMeter(watch.device).current()
    return MemoryReport(
        source="measured",
        device=watch.device.type,
        peak_bytes=peak,
        categories=categories,
        phases={phase: peak},
        device_phases={} if found is None else {phase: found},
        notes=[] if watched or found else ["the peak is the process's resident memory"],
    )


def state_of(watch: Watch) -> dict[str, int]:
    """Return the bytes of the run's model, its optimiser states and its present gradients."""
    if watch.model is None:
        return {}
    gradients = tensor_bytes(parameter.grad for parameter in watch.model.parameters())
    return bytes_by_category(watch.model, watch.optimizer) | {"gradients": gradients}


def what_fits(watch: Watch, report: MemoryReport) -> list[Change]:
    """Return the changes that would have fitted according to the plan; none if this run was not planned.

    The limit is what was allocated, which did fit; where only the process's memory is known, a little less than
    the plan of the run.
    """
    predicted = watch.memory.get("predicted")
    if predicted is None or watch.planner is None:
        return []
    known = report.peak_bytes + sum(predicted.overheads.values()) if not report.notes else predicted.needed_bytes
    limit = min(watch.planner.usable_bytes, known, int(MARGIN * predicted.needed_bytes))
    try:
        return remedies(watch.recipe, limit, watch.planner)
    except Exception:  # the run has failed already, and this only advises
        return []


def without_plan(watch: Watch) -> str:
    """Return what to try where the plan proposes nothing."""
    if "predicted" in watch.memory:
        return "by the plan no smaller batch, length or method would have fitted; use a smaller model"
    ways = "lower training.batch_size or data.max_length, or set training.gradient_checkpointing=true"
    return f"nothing was planned, so nothing is known to fit: {ways}"


def describe_ledger(report: MemoryReport) -> str:
    """Return the categories, largest first, and their sum: `saved activations 5.1 GiB, ...`."""
    largest = sorted(report.categories.items(), key=lambda item: -item[1])
    parts = [f"{name.replace('_', ' ')} {format_bytes(count)}" for name, count in largest if count]
    if report.residual_bytes > 0:
        parts.append(f"everything else {format_bytes(report.residual_bytes)}")
    return f"{', '.join(parts)}; {format_bytes(report.peak_bytes)} in all"


def first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
