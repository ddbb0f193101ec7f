"""How a run ends before its time: which error a user sees, and which status the record gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from peftlab.errors import DivergedError, OutOfMemoryError, StoppedError

if TYPE_CHECKING:
    from peftlab.runs.run import Run
    from peftlab.training.setup import Setup
    from peftlab.training.stop import Stop


def record_failure(error: BaseException, run: Run) -> BaseException:
    """Write the run's record with what ended it, and return the error that a user should see."""
    failure = translate(error, run)
    run.result.status, run.result.error = status_of(failure), str(failure) or type(failure).__name__
    run.write()
    return failure


def translate(error: BaseException, run: Run) -> BaseException:
    """Return the error that a user should see: torch's out of memory becomes ours."""
    if not isinstance(error, torch.OutOfMemoryError):
        return error
    training = run.recipe.training
    return OutOfMemoryError(
        f"out of memory in phase {run.phase!r} at batch_size {training.batch_size}, max_length "
        f"{run.recipe.data.max_length}; lower training.batch_size or data.max_length (raise "
        "training.gradient_accumulation to keep the step), or set training.gradient_checkpointing=true"
    )


def status_of(error: BaseException) -> str:
    if isinstance(error, DivergedError):
        return "diverged"
    if isinstance(error, OutOfMemoryError):
        return "out_of_memory"
    return "interrupted" if isinstance(error, KeyboardInterrupt | StoppedError) else "failed"


def refuse_unfinished(setup: Setup, stop: Stop) -> None:
    """Raise StoppedError if a signal or the time limit ended training early; the checkpoint is written."""
    step, signal = setup.progress.step, stop.signal
    if step == setup.steps:
        return
    why = f"signal {signal}" if signal else "run.max_seconds" if stop.out_of_time else "run.stop_after"
    raise StoppedError(
        f"stopped after step {step} of {setup.steps} ({why}); its checkpoint is whole: --resume goes on", signal
    )
