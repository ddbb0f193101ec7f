"""Which step's weights a run keeps: its last one's, or those of the best evaluated one."""

from __future__ import annotations

from torch import nn

from peftlab.checkpoint.store import find_step
from peftlab.checkpoint.tensors import load_state
from peftlab.errors import StorageError
from peftlab.metrics import METRICS
from peftlab.runs.bench import Bench
from peftlab.runs.record import RunRecord
from peftlab.runs.save import write_weights
from peftlab.training.setup import Setup


def choose_weights(record: RunRecord, bench: Bench, model: nn.Module, setup: Setup) -> int:
    """Give `model` the weights that `run.keep` asks for, and return the step that they are of.

    With `both` the last step's are written to the run's folder `last` before. What was decided is noted.
    """
    progress, keep = setup.progress, record.recipe.run.keep
    if progress.ended_early:
        record.note(describe_end(record, setup))
    if keep == "last" or progress.best_step is None:
        return progress.step
    if keep == "both":
        write_weights(record, bench, model, record.directory.last)
    if progress.best_step != progress.step:
        restore_weights(record, model, progress.best_step)
    record.note(f"the weights of step {progress.best_step} are kept: {describe_best(record)}")
    return progress.best_step


def restore_weights(record: RunRecord, model: nn.Module, step: int) -> None:
    """Copy the trained weights of the checkpoint of `step` into `model`. Raises StorageError if it is not whole."""
    record.world.wait()  # the main process has written it
    best = find_step(record.directory.checkpoints, step)
    if best is None:
        raise StorageError(
            f"{record.directory.checkpoints}: the checkpoint of step {step}, whose weights are the best, is missing; "
            "restore it and use --resume, or start again with --overwrite"
        )
    record.world.fill(model, load_state(best.path, "state")["weights"])


def describe_end(record: RunRecord, setup: Setup) -> str:
    progress, patience = setup.progress, record.recipe.evaluation.patience
    return (
        f"training ended at step {progress.step} of {setup.steps}: {record.recipe.evaluation.best} was not better in "
        f"{patience} evaluation{'' if patience == 1 else 's'} in a row (evaluation.patience)"
    )


def describe_best(record: RunRecord) -> str:
    name, progress = record.recipe.evaluation.best, record.result.progress
    extreme = "highest" if METRICS[name].higher_is_better else "lowest"
    return f"the {extreme} {name} of all evaluations during training ({progress.best_metric:.4g})"
