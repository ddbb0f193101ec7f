"""How a run ends before its time: which error a user sees, and which status the record gets."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING

from peftlab.errors import DivergedError, LaunchError, OutOfMemoryError, StoppedError, StorageError, one_line
from peftlab.memory.shortage import is_shortage
from peftlab.runs.shortage import explain_shortage
from peftlab.secrets import mask_secrets

if TYPE_CHECKING:
    from peftlab.runs.run import Run
    from peftlab.training.setup import Setup
    from peftlab.training.stop import Stop


def record_failure(error: BaseException, run: Run) -> BaseException:
    """Write the run's record with what ended it, and return the error that a user should see."""
    failure = translate(run.launch.explain(error), run)
    result, directory = run.result, run.directory
    result.status, result.error = status_of(failure), mask_secrets(str(failure)) or type(failure).__name__
    lost = failure.lost if isinstance(failure, LaunchError) else []
    with contextlib.suppress(StorageError):  # a disk that is full takes no record either: the first error counts
        if run.accelerator.is_main_process:
            words = [word for number in lost if (word := directory.read_word(number))]
            result.status, result.error = words[0] if words else (result.status, result.error)
            run.write()
        else:
            directory.leave_word(run.accelerator.process_index, result.status, result.error)
            if 0 in lost:
                stand_in(run)
    return failure


def stand_in(run: Run) -> None:
    """Write the record in the place of a main process that was killed before it could."""
    with run.directory.lock():
        record = run.directory.read_result()
        if record.status == "running":
            record.status, record.error = run.result.status, run.result.error
            run.directory.write_result(record)


def translate(error: BaseException, run: Run) -> BaseException:
    """Return the error that a user should see: any sort of out of memory becomes ours."""
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return StorageError(f"{where}{error.strerror or one_line(error)}; free some space or check the disk")
    return explain_shortage(error, run.watch) if is_shortage(error) else error


def status_of(error: BaseException) -> str:
    if isinstance(error, DivergedError):
        return "diverged"
    if isinstance(error, OutOfMemoryError):
        return "out_of_memory"
    return "interrupted" if isinstance(error, KeyboardInterrupt | StoppedError) else "failed"


def refuse_not_finite(metrics: dict[str, float], part: str, when: str) -> None:
    """Raise DivergedError for a loss of the held-out rows of `part` that is no number, `before` or `after` training."""
    loss = metrics.get("loss", 0.0)
    if math.isfinite(loss):
        return
    if when == "before":
        told = "before any step: the base model's weights or these rows are damaged; get them again"
    else:
        told = "after training, which diverged in its last steps; lower training.learning_rate"
    raise DivergedError(f"data.{part}: the loss of its rows is {loss:g} {told}")


def refuse_unfinished(setup: Setup, stop: Stop) -> None:
    """Raise StoppedError if a signal or the time limit ended training early; the checkpoint is written."""
    step = setup.progress.step
    if step == setup.steps:
        return
    told = f"stopped after step {step} of {setup.steps} ({stop.why}); its checkpoint is whole: --resume goes on"
    raise StoppedError(told, stop.signal)
