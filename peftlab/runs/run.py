"""One recipe from start to result: its stages in order."""

from __future__ import annotations

from pathlib import Path

from peftlab.errors import StorageError, one_line
from peftlab.files import user_path
from peftlab.memory.cuda import refuse_snapshot
from peftlab.recipe.schema import Recipe
from peftlab.recipe.schema import Run as RunSettings
from peftlab.reports import RunResult
from peftlab.runs.directory import is_finished, open_directory
from peftlab.runs.display import open_display
from peftlab.runs.ending import record_failure, refuse_unfinished
from peftlab.runs.evaluation import PARTS, evaluate_parts
from peftlab.runs.identity import as_recorded
from peftlab.runs.inference import try_inference
from peftlab.runs.launch import launched
from peftlab.runs.prepare import apply_method, prepare_bench
from peftlab.runs.record import RunDisplay, RunRecord
from peftlab.runs.save import draw_curve, save_weights
from peftlab.runs.training import train_model
from peftlab.training.recorder import Recorder
from peftlab.training.stop import Stop
from peftlab.training.trackers import Trackers
from peftlab.world.open import open_world, refuse_missing_trackers
from peftlab.world.quiet import quiet_libraries

# A signal from a terminal reaches the processes of a launch twice: by itself, and from the launcher.
ECHO_SECONDS = 3.0


def train(
    recipe: Recipe,
    *,
    name: str = "run",
    overwrite: bool = False,
    resume: bool = False,
    display: RunDisplay | None = None,
) -> RunResult:
    """Run `recipe` and return its result, which is also in the run directory with everything else.

    The directory is the recipe's `run.output` or `runs/NAME`. With `resume` the run resumes from its latest
    intact checkpoint; one that is finished is returned unchanged. Whatever ends it, `result.json` is written with
    its status. Expected errors are PeftlabErrors; a run that is stopped early raises StoppedError.
    """
    quiet_libraries()
    path = run_path(recipe, name)
    refuse_missing_trackers(recipe.run.trackers)
    world = open_world(recipe.run.device, recipe.run.deterministic)
    with (
        open_stop(recipe.run, world.processes) as stop,
        launched(world) as launch,
        open_directory(path, world.is_main, overwrite, resume) as directory,
    ):
        world.wait()
        if resume:
            recipe = as_recorded(recipe, directory.read_result().recipe)
            if is_finished(directory, recipe):
                return directory.read_result()
        record = RunRecord(recipe, name, world, directory, display or open_display(world.is_main))
        trackers = Trackers(world, recipe.run.trackers, name, directory.trackers, record.note)
        recorder = Recorder(world, directory.metrics, record.display, trackers, record.meter.current)
        launch.give_up = lambda error: record_failure(error, record, launch)
        try:
            execute(record, recorder, stop, resume)
        except BaseException as error:
            failure = record_failure(error, record, launch)
            raise failure from (None if failure is error else error)
        finally:
            launch.give_up = None  # the record is written
            trackers.close()
            record.display.close()
    return record.result


def execute(record: RunRecord, recorder: Recorder, stop: Stop, resume: bool) -> None:
    """Do every stage in order, each a phase with its seconds and its peak of memory."""
    start_files(record, resume)
    with record.in_phase("load"):
        bench = prepare_bench(record)
    if "evaluation_before" not in record.result.seconds:
        with record.in_phase("evaluation_before"):
            evaluate_parts(record, recorder, bench, bench.base.model, "before", 0)
    with record.in_phase("apply"):
        model = apply_method(record, bench)
    with record.in_phase("training"):
        setup = train_model(record, recorder, stop, bench, model, resume)
    refuse_unfinished(setup, stop)
    with record.in_phase("evaluation_after"):
        evaluate_parts(record, recorder, bench, model, "after", setup.progress.step)
    with record.in_phase("save"):
        save_weights(record, bench, model, setup.optimizer)
    record.result.memory["process"] = record.meter.report(model, setup.optimizer)
    if record.recipe.evaluation.latency and record.world.is_main:
        with record.in_phase("latency"):
            record.result.inference = try_inference(bench, model, record.directory.weights, record.note)
    record.finish()
    draw_curve(record, recorder)
    record.world.wait()  # a process that ended earlier would count as lost


def start_files(record: RunRecord, resume: bool) -> None:
    """Write the first record, with the measurements of the interrupted run if this one resumes it."""
    recipe = record.recipe
    refuse_snapshot(recipe.run.memory_snapshot, record.world.device)
    if resume:
        record.reopen(record.directory.read_result(), tuple(f"{part}after" for part in PARTS.values()))
    record.write_recipe()
    record.write()
    for line in record.world.notes:
        record.note(line)
    if recipe.model.trust_remote_code:
        record.note(f"model.trust_remote_code: runs the code that {recipe.model.name} ships")


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
