"""One recipe from start to result: its stages in order."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from peftlab.errors import StorageError, one_line
from peftlab.files import user_path
from peftlab.memory.cuda import refuse_snapshot
from peftlab.recipe.schema import Recipe
from peftlab.recipe.schema import Run as RunSettings
from peftlab.reports import RunResult
from peftlab.runs.bench import Bench
from peftlab.runs.choice import choose_weights
from peftlab.runs.digests import SCORES, WEIGHTS, remove_digests
from peftlab.runs.directory import open_directory, written_at
from peftlab.runs.display import open_display
from peftlab.runs.ending import record_failure, refuse_unfinished
from peftlab.runs.evaluation import Measuring, evaluate_base, evaluate_parts, evaluate_trained, is_evaluated
from peftlab.runs.identity import as_recorded, measuring_changes
from peftlab.runs.inference import try_inference
from peftlab.runs.launch import is_restarted, launched
from peftlab.runs.prepare import apply_method, prepare_bench, restore_trained
from peftlab.runs.record import RunDisplay, RunRecord
from peftlab.runs.resumption import Resumption, find_resumption
from peftlab.runs.save import draw_curve, save_weights
from peftlab.runs.start import find_start
from peftlab.runs.tracking import report_end, report_start
from peftlab.runs.training import train_model
from peftlab.training.recorder import Recorder
from peftlab.training.stop import Stop
from peftlab.training.trackers import Trackers
from peftlab.world.open import open_world, refuse_missing_trackers, refuse_recipe
from peftlab.world.quiet import quiet_libraries

# A signal from a terminal reaches the processes of a launch twice: by itself, and from the launcher.
ECHO_SECONDS = 3.0
NO_LATENCY = (
    "evaluation.latency: not measured, because each process has a part of the weights; evaluate the run in one process"
)


def train(
    recipe: Recipe,
    *,
    name: str = "run",
    overwrite: bool = False,
    resume: bool = False,
    verify: bool = True,
    display: RunDisplay | None = None,
) -> RunResult:
    """Run `recipe` and return its result, which is also in the run directory with everything else.

    The directory is the recipe's `run.output` or `runs/NAME`. With `resume` the run resumes from its latest
    intact checkpoint, or does what follows training where its weights are saved; one that is complete is returned
    unchanged. Where torchrun starts the processes of a launch again, its run resumes by itself. What it keeps is
    verified first, unless `verify` is false. Whatever ends it, `result.json` is written with its status. Expected
    errors are PeftlabErrors; a run that is stopped early raises StoppedError.
    """
    quiet_libraries()
    path = run_path(recipe, name)
    refuse_missing_trackers(recipe.run.trackers)
    if recipe.method.from_ is not None and not resume:
        find_start(recipe.method.from_)
    world = open_world(recipe.run.device, recipe.run.deterministic)
    refuse_recipe(world, recipe)
    with (
        open_stop(recipe.run, world.processes) as stop,
        launched(world) as launch,
        open_directory(
            path, world.is_main, overwrite, resume := resume or is_restarted(world, written_at(path))
        ) as directory,
    ):
        world.wait()
        start = find_resumption(directory, recipe, verify, world.row_processes) if resume else None
        if start and start.former:
            if start.complete:
                return start.former
            recipe = as_recorded(recipe, start.former.recipe)
        world.wait()  # every process has read what the main one changes from here on
        record = RunRecord(recipe, name, world, directory, display or open_display(world.is_main), launch)
        trackers = Trackers(world, recipe.run.trackers, name, directory.trackers, record.note)
        recorder = Recorder(world, directory.metrics, record.display, trackers, record.meter.current)
        launch.give_up = lambda error: record_failure(error, record)
        try:
            execute(record, recorder, stop, start)
        except BaseException as error:
            failure = record_failure(error, record)
            raise failure from (None if failure is error else error)
        finally:
            launch.give_up = None  # the record is written
            trackers.close()
            record.display.close()
    return record.result


def execute(record: RunRecord, recorder: Recorder, stop: Stop, start: Resumption | None) -> None:
    """Do every stage in order, each a phase with its seconds and its peak of memory.

    What was trained is saved before anything is measured on it; what an earlier attempt did is not done again.
    """
    start_files(record, recorder, start)
    begun = None
    with stop.at_once():
        with record.in_phase("load"):
            bench = prepare_bench(record, start)
        if not is_evaluated(record, bench, "before", start.scored if start else ()):
            if record.recipe.method.from_ is not None:
                with record.in_phase("apply"):
                    begun = apply_method(record, bench)
            with record.in_phase("evaluation_before"):
                if begun is None:
                    evaluate_base(record, recorder, bench)
                else:
                    evaluate_parts(record, recorder, bench, Measuring(bench, begun), "before", 0)
    model, optimizer = obtain_trained(record, recorder, stop, bench, start, begun)
    with stop.at_once():
        evaluate_trained(record, recorder, bench, model, start.scored if start and start.trained else ())
        if optimizer is not None or "process" not in record.result.memory:
            record.result.memory["process"] = record.meter.report(model, optimizer)
        if record.recipe.evaluation.latency and record.world.divided:
            record.note(NO_LATENCY)
        elif record.recipe.evaluation.latency and record.world.is_main:
            with record.in_phase("latency"):
                record.result.inference = try_inference(bench, model, record.directory.weights, record.note)
    draw_curve(record, recorder)
    record.finish()
    report_end(record, recorder.trackers)
    record.world.wait()  # a process that ended earlier would count as lost


def obtain_trained(
    record: RunRecord,
    recorder: Recorder,
    stop: Stop,
    bench: Bench,
    start: Resumption | None,
    begun: nn.Module | None = None,
) -> tuple[nn.Module, torch.optim.Optimizer | None]:
    """Return the model after its last step, saved, with its optimiser; of an earlier attempt, without one.

    `begun` is the model with its method, where that was evaluated already.
    """
    with stop.at_once(), record.in_phase("apply"):
        if start and start.trained:
            return restore_trained(record, bench, begun), None
        model = begun or apply_method(record, bench, resumed=bool(start and start.checkpoint))
        report_start(record, recorder.trackers)
    with record.in_phase("training"):
        setup = train_model(record, recorder, stop, bench, model, start.checkpoint if start else None)
    refuse_unfinished(setup, stop)
    with record.in_phase("save"):
        save_weights(record, bench, model, setup.optimizer, choose_weights(record, bench, model, setup))
    return model, setup.optimizer


def start_files(record: RunRecord, recorder: Recorder, start: Resumption | None) -> None:
    """Write the first record, with what an earlier attempt left if this run resumes it."""
    recipe = record.recipe
    refuse_snapshot(recipe.run.memory_snapshot, record.world.device)
    if start:
        reopen(record, recorder, start)
    record.write_recipe()
    record.write()
    for line in record.world.notes:
        record.note(line)
    if recipe.model.trust_remote_code:
        record.note(f"model.trust_remote_code: runs the code that {recipe.model.name} ships")


def reopen(record: RunRecord, recorder: Recorder, start: Resumption) -> None:
    """Continue the record, the metrics and the scores of an earlier attempt; note what is lost or made again."""
    directory = record.directory
    if start.former:
        record.reopen(start.former, start.trained)
        if changes := measuring_changes(start.former.recipe, record.result.recipe):
            record.forget_measured()
            record.note(f"measured anew, before training too, with other settings: {', '.join(changes)}")
    record.lost += start.lost
    for line in (*(f"skipped: {fault}" for fault in start.skipped), *start.lost):
        record.note(line)
    for fault in start.faults.values():
        record.note(f"{fault}; it is made again")
    if start.step == 0:
        record.note("there is no checkpoint to resume from: training begins at step 0")
    recorder.rewind(start.step)
    if record.world.is_main:
        if SCORES in start.faults:
            directory.scores.unlink(missing_ok=True)
        remove_digests(directory.path)
        if start.trained:
            record.seal([WEIGHTS])


def open_stop(settings: RunSettings, processes: int) -> Stop:
    """Return what ends the run early: a signal, or the recipe's limits."""
    return Stop(settings.max_seconds, settings.stop_after, ECHO_SECONDS if processes > 1 else 0.0)


def run_path(recipe: Recipe, name: str) -> Path:
    """Return the run directory's path. Raises StorageError if it is not a valid path."""
    wanted = recipe.run.output or f"runs/{name}"
    try:
        return user_path(wanted)
    except ValueError as error:
        raise StorageError(f"run.output: {one_line(wanted, 80)}: {error}; choose another folder") from None
