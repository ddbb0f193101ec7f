"""A run out of memory: what lived at that moment, in which phase, and what would have fitted."""

from __future__ import annotations

from peftlab.errors import OutOfMemoryError
from peftlab.memory.cuda import read_phase
from peftlab.memory.fit import Change, remedies
from peftlab.memory.measure import MemoryMeter, bytes_by_category, tensor_bytes
from peftlab.quantities import format_bytes
from peftlab.reports import MemoryReport
from peftlab.runs.watch import Watch

# A plan that said that a run fits was wrong by something: what is proposed instead keeps away from it.
MARGIN = 0.9


def explain_shortage(error: BaseException, watch: Watch) -> OutOfMemoryError:
    """Return the error that a user sees, a line each for phase, ledger and what would have fitted.

    The ledger and the changes also go into `watch.memory`, as `out_of_memory`.
    """
    report = held_at_shortage(watch)
    changes = what_fits(watch, report)
    report.remedies = [change.describe() for change in changes]
    watch.memory["out_of_memory"] = report
    (phase,) = report.phases
    recipe = watch.recipe
    lines = [
        f"out of memory in phase {phase.replace('_', ' ')}, at training.batch_size={recipe.training.batch_size} and "
        f"data.max_length={recipe.data.max_length}: {first_line(error)}",
        f"held then: {describe_ledger(report)}",
        f"would have fitted, by the plan: {'; '.join(report.remedies)}" if changes else without_plan(watch),
    ]
    return OutOfMemoryError("\n".join(lines))


def held_at_shortage(watch: Watch) -> MemoryReport:
    """Return the ledger at the moment: the tracker's where it watched, else the state and what the device says."""
    phase, categories = watch.phase, watch.probe.ledger.shortage if watch.probe else None
    watched = categories is not None
    if categories is None:
        categories = held_by(watch)
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


def held_by(watch: Watch) -> dict[str, int]:
    """Return what the run's model and optimiser hold, with the gradients that there are."""
    if watch.model is None:
        return {}
    gradients = tensor_bytes(parameter.grad for parameter in watch.model.parameters())
    return bytes_by_category(watch.model, watch.optimizer) | {"gradients": gradients}


def what_fits(watch: Watch, held: MemoryReport) -> list[Change]:
    """Return the changes that the plan says would have fitted; none where there is no plan of this run.

    What lived did fit, so that is what there is; where only the process's memory is known, a little less than
    the plan said for the run as it was.
    """
    predicted = watch.memory.get("predicted")
    if predicted is None or watch.planner is None:
        return []
    known = held.peak_bytes + sum(predicted.overheads.values()) if not held.notes else predicted.needed_bytes
    limit = min(watch.planner.usable_bytes, known, int(MARGIN * predicted.needed_bytes))
    try:
        return remedies(watch.recipe, limit, watch.planner)
    except Exception:  # the run has failed already, and this only advises
        return []


def without_plan(watch: Watch) -> str:
    """Return what to try where the plan proposes nothing."""
    if "predicted" in watch.memory:
        return "by the plan no smaller batch, length or method would have fitted; take a smaller model"
    ways = "lower training.batch_size or data.max_length, or set training.gradient_checkpointing=true"
    return f"nothing was planned, so nothing is known to fit: {ways}"


def describe_ledger(report: MemoryReport) -> str:
    """Return the categories, largest first, and their sum: `saved activations 5.1 GiB, ...`."""
    held = sorted(report.categories.items(), key=lambda item: -item[1])
    parts = [f"{name.replace('_', ' ')} {format_bytes(count)}" for name, count in held if count]
    if report.residual_bytes > 0:
        parts.append(f"everything else {format_bytes(report.residual_bytes)}")
    return f"{', '.join(parts)}; {format_bytes(report.peak_bytes)} in all"


def first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
