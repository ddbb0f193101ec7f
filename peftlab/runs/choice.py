"""Which step's weights a run keeps: its last one's, or those of the best evaluated one."""

from __future__ import annotations

from torch import nn

from peftlab.checkpoint.parts import load_whole
from peftlab.checkpoint.store import find_step, list_steps
from peftlab.errors import StorageError
from peftlab.metrics import METRICS
from peftlab.optimization.average import mean_of, steps_in_mean, take_average
from peftlab.runs.bench import Bench
from peftlab.runs.checkpoints import load_for
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
    take_average(setup.optimizer)
    take_mean(record, model, progress.step)
    if keep == "last" or progress.best_step is None:
        note_average(record, progress.step)
        return progress.step
    if keep == "both":
        write_weights(record, bench, model, record.directory.last)
    if progress.best_step != progress.step:
        restore_weights(record, model, setup, progress.best_step)
    note_average(record, progress.best_step)
    record.note(f"the weights of step {progress.best_step} are kept: {describe_best(record)}")
    return progress.best_step


def note_average(record: RunRecord, step: int) -> None:
    """Note that the result is an average over the steps."""
    if (decay := record.recipe.training.average.ema) is not None:
        record.note(f"the result is the average of the weights up to step {step} (training.average.ema={decay})")


def take_mean(record: RunRecord, model: nn.Module, step: int) -> None:
    """Set the weights to the mean of the last checkpoints, where the recipe asks for it. Raises StorageError."""
    wanted, every = record.recipe.training.average.last, record.recipe.run.save_every
    if wanted is None:
        return
    assert every is not None, "a check of the recipe"
    record.world.wait()  # the main process has written them
    root = record.directory.checkpoints
    steps = [number for number in steps_in_mean(step, every, wanted) if number in list_steps(root)]
    states = (load_whole(found.path)["weights"] for number in steps if (found := find_step(root, number)))
    record.world.fill(model, mean_of(states))
    fewer = "" if len(steps) == wanted else f", of {wanted} that training.average.last asks for"
    record.note(f"the result is the mean of the weights of steps {', '.join(map(str, steps))}{fewer}")


def restore_weights(record: RunRecord, model: nn.Module, setup: Setup, step: int) -> None:
    """Copy the result of the checkpoint of `step` into `model`. Raises StorageError if it is not whole."""
    record.world.wait()  # the main process has written it
    best = find_step(record.directory.checkpoints, step)
    if best is None:
        raise StorageError(
            f"{record.directory.checkpoints}: the checkpoint of step {step}, whose weights are the best, is missing; "
            "restore it and use --resume, or start again with --overwrite"
        )
    state = load_for(best, record.world)
    if record.recipe.training.average.ema is None:
        record.world.fill(model, state["weights"])
    else:
        record.world.restore(setup.model, setup.optimizer, state)
        take_average(setup.optimizer)


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
