"""One recipe from start to result: load, measure the base, apply the method, train, measure, save."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from peftlab.data.dataset import Dataset
from peftlab.data.notes import note_data
from peftlab.errors import StorageError, one_line
from peftlab.files import user_path
from peftlab.memory.cuda import refuse_snapshot, snapshot
from peftlab.memory.measure import MemoryMeter
from peftlab.memory.probe import Probe, join_reports
from peftlab.recipe.dump import dump_recipe
from peftlab.recipe.schema import Recipe
from peftlab.recipe.schema import Run as RunSettings
from peftlab.reports import ParameterReport, RunResult, SplitReport
from peftlab.runs.bench import Bench, prepare
from peftlab.runs.directory import RunDirectory, is_finished, open_directory
from peftlab.runs.display import open_display
from peftlab.runs.ending import record_failure, refuse_not_finite, refuse_unfinished
from peftlab.runs.environment import describe_environment
from peftlab.runs.inference import try_inference
from peftlab.runs.launch import Launch, launched
from peftlab.runs.picture import draw_losses
from peftlab.runs.prediction import foresee, open_forecast
from peftlab.runs.shortage import Watch
from peftlab.runs.training import train_model
from peftlab.secrets import mask_secrets
from peftlab.training.recorder import Recorder
from peftlab.training.stop import Stop
from peftlab.training.trackers import Trackers
from peftlab.world.base import World
from peftlab.world.open import open_world, refuse_missing_trackers
from peftlab.world.quiet import quiet_libraries

# A signal from a terminal reaches the processes of a launch twice: by itself, and from the launcher.
ECHO_SECONDS = 3.0
PHASES = ("load", "evaluation_before", "apply", "training", "evaluation_after", "save", "latency")

# Each part of the held-out data, and what stands before `before` and `after` where its metrics are kept.
PARTS = {"evaluation": "", "test": "test_", "general": "general_"}


def train(
    recipe: Recipe, *, name: str = "run", overwrite: bool = False, resume: bool = False, display: Any = None
) -> RunResult:
    """Run `recipe` and return its result, which also lies in the run directory with everything else.

    The directory is the recipe's `run.output` or `runs/NAME`. With `resume` the run goes on from its latest
    whole checkpoint; one that is finished is returned as it is. Every ending writes `result.json` with its
    status; faults that a user can meet raise a PeftlabError, StoppedError among them.
    """
    quiet_libraries()
    path = run_path(recipe, name)
    world = open_world(recipe.run.device)
    refuse_missing_trackers(recipe.run.trackers)
    with (
        open_stop(recipe.run, world.processes) as stop,
        launched(world) as launch,
        open_directory(path, world.is_main, overwrite, resume) as directory,
    ):
        world.wait()
        if resume and is_finished(directory, recipe):
            return directory.read_result()
        run = Run(recipe, name, world, launch, directory, display or open_display(world.is_main), stop, resume)
        launch.give_up = lambda error: record_failure(error, run)
        try:
            run.execute()
        except BaseException as error:
            failure = record_failure(error, run)
            raise failure from (None if failure is error else error)
        finally:
            launch.give_up = None  # the record is written
            run.recorder.trackers.close()
            run.display.close()
    return run.result


def open_stop(settings: RunSettings, processes: int) -> Stop:
    """Return what ends the run early: a signal, or what the recipe says."""
    return Stop(settings.max_seconds, settings.stop_after, ECHO_SECONDS if processes > 1 else 0.0)


def run_path(recipe: Recipe, name: str) -> Path:
    """Return the run directory's path. Raises StorageError for what can be none."""
    try:
        return user_path(recipe.run.output or f"runs/{name}")
    except ValueError as error:
        told = one_line(recipe.run.output or f"runs/{name}", 80)
        raise StorageError(f"run.output: {told}: {error}; choose another folder") from None


def describe_parameters(recipe: Recipe, report: ParameterReport) -> str:
    """Return one line: what trains."""
    share = f"{report.trainable:,} of {report.total:,} parameters train ({report.fraction:.3%})"
    return f"{recipe.method.title}: {share}"


@dataclass
class Run:
    """One run while it goes: what it was given, and the result that it fills."""

    recipe: Recipe
    name: str
    world: World
    launch: Launch
    directory: RunDirectory
    display: Any
    stop: Stop
    resume: bool = False

    def __post_init__(self):
        self.meter = MemoryMeter(self.world.device)
        self.result = RunResult(
            status="running",
            name=self.name,
            recipe=self.recipe.model_dump(mode="json"),
            environment=describe_environment(self.world),
        )
        names, folder = self.recipe.run.trackers, self.directory.path / "trackers"
        trackers = Trackers(self.world, names, self.name, folder, self.note)
        self.watch = Watch(self.recipe, self.world.device, self.result.memory)
        self.recorder = Recorder(self.world, self.directory.metrics, self.display, trackers, self.meter.current)

    def execute(self) -> None:
        """Do everything in order, each part a phase with its seconds and its peak of memory."""
        self.start_files()
        result = self.result
        with self.in_phase("load"):
            bench = prepare(self.recipe, self.world, self.foresee)
        self.watch.model = bench.model
        result.data = bench.dataset.report
        for line in note_data(self.recipe, result.data, self.world.processes):
            self.note(line)
        if "evaluation_before" not in result.seconds:
            with self.in_phase("evaluation_before"):
                self.evaluate(bench, bench.model, "before", 0)
        with self.in_phase("apply"):
            model, result.parameters = bench.apply()
        self.watch.model = model
        self.note(describe_parameters(self.recipe, result.parameters))
        with self.in_phase("training"), snapshot(self.snapshot_file):
            setup = train_model(self, bench, model)
        refuse_unfinished(setup, self.stop)
        with self.in_phase("evaluation_after"):
            self.evaluate(bench, model, "after", result.progress.step)
        with self.in_phase("save"):
            self.watch.probe = Probe(self.world.device)
            with self.watch.probe.alone("save", model, setup.optimizer):
                self.save(bench, model)
        result.memory["measured"] = join_reports([result.memory["measured"], self.watch.probe.report()])
        result.memory["process"] = self.meter.report(model, setup.optimizer)
        if self.recipe.evaluation.latency and self.world.is_main:
            with self.in_phase("latency"):
                result.inference = try_inference(bench, model, self.directory.weights, self.note)
        result.status = "finished"
        result.seconds["total"] = sum(seconds for name, seconds in result.seconds.items() if name in PHASES)
        self.write()
        self.draw()
        self.world.wait()  # a process that left earlier would count as lost

    def note(self, line: str) -> None:
        """Show a line to whoever watches, and keep it in the record."""
        line = mask_secrets(line)
        self.display.note(line)
        self.result.notes.append(line)

    def foresee(self, dataset: Dataset) -> Recipe:
        """Plan the run's memory on its own rows, and go on with the recipe that comes of it."""
        self.watch.forecast = open_forecast(self.recipe, dataset, self.world)
        recipe = foresee(self.recipe, self.watch.forecast, self.result.memory, self.note)
        if recipe != self.recipe:
            self.result.split = SplitReport.of(self.recipe, recipe)
            self.recipe = self.watch.recipe = recipe
            self.result.recipe = recipe.model_dump(mode="json")
            if self.world.is_main:
                self.directory.write_recipe(dump_recipe(recipe))
        return recipe

    @contextlib.contextmanager
    def in_phase(self, phase: str) -> Iterator[None]:
        self.watch.phase = phase
        started = time.perf_counter()
        with self.meter.phase(phase):
            yield
            self.world.synchronize()
        self.add_seconds(phase, time.perf_counter() - started)

    def add_seconds(self, name: str, seconds: float) -> None:
        """Add to what the result says under `name`, a phase or a part of one."""
        self.result.seconds[name] = self.result.seconds.get(name, 0.0) + seconds

    @property
    def snapshot_file(self) -> Path | None:
        wanted = self.recipe.run.memory_snapshot and self.world.is_main
        return self.directory.memory_snapshot if wanted else None

    def start_files(self) -> None:
        refuse_snapshot(self.recipe.run.memory_snapshot, self.world.device)
        if self.resume:
            self.take_up()
        if self.world.is_main:
            self.directory.write_recipe(dump_recipe(self.recipe))
        self.write()
        for line in self.world.notes:
            self.note(line)
        if self.recipe.model.trust_remote_code:
            self.note(f"model.trust_remote_code: runs the code that {self.recipe.model.name} ships")

    def take_up(self) -> None:
        """Keep what the run measured before it was stopped."""
        former = self.directory.read_result()
        kept = {"metrics", "examples", "seconds", "resumes", "audit"}
        self.result = self.result.model_copy(update={name: getattr(former, name) for name in kept})
        for part in PARTS.values():
            self.result.metrics.pop(f"{part}after", None)

    def evaluate(self, bench: Bench, model: nn.Module, when: str, step: int) -> None:
        """Evaluate and keep metrics, scores and generated examples as those `before` or `after` training."""
        for part, prefix in PARTS.items():
            metrics, scores = bench.evaluate(model, part)
            if scores is None:
                continue
            self.result.metrics[prefix + when] = metrics
            refuse_not_finite(metrics, part, when)
            if part == "evaluation":
                self.recorder.log_evaluation(step, metrics)
            if self.world.is_main:
                self.directory.add_scores(prefix + when, scores.dump())
        if bench.dataset.prompts and self.world.is_main:
            examples = bench.generate_examples(model)
            kept = self.result.examples or [{"prompt": e["prompt"], "reference": e["reference"]} for e in examples]
            self.result.examples = [old | {when: new["output"]} for old, new in zip(kept, examples, strict=True)]

    def save(self, bench: Bench, model: nn.Module) -> None:
        """Write what trained, the tokenizer beside it, as one folder that appears whole."""
        if not self.world.is_main:
            return
        context = {"base_model": bench.source, "task": self.recipe.model.task, "labels": bench.dataset.labels}
        with self.directory.writing(self.directory.weights) as temporary:
            self.recipe.method.save(model, temporary, context)
            bench.tokenizer.save_pretrained(temporary)

    def draw(self) -> None:
        """Draw the loss curve; a picture that cannot be drawn costs nobody a run."""
        if not self.world.is_main:
            return
        try:
            draw_losses(self.recorder.history, f"{self.name}: {self.recipe.method.title}", self.directory.picture)
        except Exception as error:
            self.display.note(f"{self.directory.picture} cannot be drawn: {type(error).__name__}: {one_line(error)}")

    def write(self) -> None:
        if self.world.is_main:
            self.directory.write_result(self.result)
