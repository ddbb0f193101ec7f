"""How a run ends early: the error that a user sees, and the status in the record."""

from __future__ import annotations

import contextlib
import time

from peftlab.checkpoint.store import list_steps
from peftlab.errors import DivergedError, LaunchError, OutOfMemoryError, PeftlabError, StoppedError, StorageError
from peftlab.files import why
from peftlab.memory.shortage import is_shortage
from peftlab.reports import Status
from peftlab.runs.record import RunRecord
from peftlab.runs.shortage import explain_shortage
from peftlab.secrets import mask_secrets
from peftlab.training.setup import Setup
from peftlab.training.stop import Interruption, Stop
from peftlab.world.determinism import explain_refusal

# How long a process waits to see whether the main one ends by the same error, and shows it.
REPORT_SECONDS = 2.0


def record_failure(error: BaseException, record: RunRecord) -> BaseException:
    """Return the error that a user should see, after writing it to the run's record."""
    record.settle()
    failure = translate(record.launch.explain(error), record)
    result, directory = record.result, record.directory
    result.status, result.error = status_of(failure), mask_secrets(str(failure)) or type(failure).__name__
    lost = failure.lost if isinstance(failure, LaunchError) else []
    with contextlib.suppress(
        StorageError
    ):  # on a full disk the record cannot be written either; the first error is reported
        if record.world.is_main:
            notes = [note for number in lost if (note := directory.read_ending(number))]
            result.status, result.error = notes[0] if notes else (result.status, result.error)
            record.write()
            record.seal()
        else:
            directory.write_ending(record.world.process, result.status, result.error)
            if 0 in lost:
                write_for_main(record)
        if isinstance(failure, PeftlabError):
            failure.reported = is_reported(failure, record, lost)
    return failure


def is_reported(failure: PeftlabError, record: RunRecord, lost: list[int]) -> bool:
    """Return whether another process shows this error, or its own that was the first, so that it is read once."""
    if any(record.directory.read_ending(number) for number in lost):
        return True
    if record.world.is_main:
        return False
    shown, ends = record.directory.read_result(), time.monotonic() + REPORT_SECONDS
    while not lost and shown.status == "running" and time.monotonic() < ends:  # the main process may have it too
        time.sleep(REPORT_SECONDS / 20)
        shown = record.directory.read_result()
    if shown.status == "running":
        return False
    same = shown.error == mask_secrets(str(failure))
    return not same if lost else same


def write_for_main(record: RunRecord) -> None:
    """Write the result in place of a main process that was killed before it could."""
    with record.directory.lock():
        result = record.directory.read_result()
        if result.status == "running":
            result.status, result.error = record.result.status, record.result.error
            record.directory.write_result(result)


def translate(error: BaseException, record: RunRecord) -> BaseException:
    """Return the error that a user should see: any shortage of memory becomes OutOfMemoryError."""
    if isinstance(error, Interruption):
        return StoppedError(describe_interruption(error, record), error.number)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return StorageError(f"{where}{why(error)}")
    if is_shortage(error):
        return explain_shortage(error, record.watch)
    return explain_refusal(error) or error


def describe_interruption(error: Interruption, record: RunRecord) -> str:
    """Return where a signal ended the run, and what is saved."""
    phase, directory = record.watch.phase.replace("_", " "), record.directory
    if record.result.saved_step is not None:
        return f"stopped after training ({error}, phase {phase}); the weights are saved: --resume does the rest"
    if list_steps(directory.checkpoints):
        return f"stopped before a step ({error}, phase {phase}); its checkpoint is complete: --resume continues the run"
    return f"stopped before training ({error}, phase {phase}); --resume or the same command starts it again"


def status_of(error: BaseException) -> Status:
    if isinstance(error, DivergedError):
        return "diverged"
    if isinstance(error, OutOfMemoryError):
        return "out_of_memory"
    return "interrupted" if isinstance(error, KeyboardInterrupt | StoppedError) else "failed"


def refuse_unfinished(setup: Setup, stop: Stop) -> None:
    """Raise StoppedError if training stopped before its last step; the checkpoint is complete."""
    step = setup.progress.step
    if step == setup.steps or setup.progress.ended_early:
        return
    where = f"stopped after step {step} of {setup.steps} ({stop.why})"
    raise StoppedError(f"{where}; its checkpoint is complete: --resume continues the run", stop.signal)
