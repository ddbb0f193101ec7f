"""One recipe from start to result: load, measure the base, apply the method, train, measure, save."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from peftlab.data.dataset import Dataset
from peftlab.device import quiet_libraries, synchronize
from peftlab.errors import DivergedError, MethodError, OutOfMemoryError, StoppedError
from peftlab.memory.measure import MemoryMeter
from peftlab.parameters.audit import Audit
from peftlab.recipe.dump import dump_recipe
from peftlab.recipe.schema import Recipe
from peftlab.reports import AuditReport, MemoryReport, RunResult
from peftlab.runs import checkpoints
from peftlab.runs.accelerator import open_accelerator
from peftlab.runs.bench import Bench, apply_method, prepare
from peftlab.runs.directory import RunDirectory
from peftlab.runs.display import open_display
from peftlab.runs.environment import describe_environment
from peftlab.runs.picture import draw_losses
from peftlab.runs.prediction import predict_run, refuse_too_large
from peftlab.runs.setup import build_setup, renew_optimizer
from peftlab.training.dropout import disable_dropout
from peftlab.training.loop import train as run_loop
from peftlab.training.preflight import measure_longest
from peftlab.training.recorder import Recorder
from peftlab.training.setup import Setup
from peftlab.training.stop import Stop


def train(
    recipe: Recipe, *, name: str = "run", overwrite: bool = False, resume: bool = False, display: Any = None
) -> RunResult:
    """Run `recipe` and return its result, which also lies in the run directory with everything else.

    The directory is the recipe's `run.output` or `runs/NAME`. With `resume` the run goes on from its latest
    whole checkpoint; one that is finished is returned as it is. Every ending writes `result.json` with its
    status; faults that a user can meet raise a PeftlabError, StoppedError among them.
    """
    quiet_libraries()
    path = Path(recipe.run.output or Path("runs") / name)
    accelerator = open_accelerator(recipe, path)
    main = accelerator.is_main_process
    with Stop(recipe.run.max_seconds) as stop, open_directory(path, main, overwrite, resume) as directory:
        accelerator.wait_for_everyone()
        if resume and is_finished(directory, recipe):
            return directory.read_result()
        run = Run(recipe, name, accelerator, directory, display or open_display(main), stop, resume)
        try:
            run.execute()
        except BaseException as error:
            failure = translate(error, run)
            run.result.status, run.result.error = status_of(failure), str(failure) or type(failure).__name__
            run.write()
            raise failure from (None if failure is error else error)
        finally:
            run.display.close()
            accelerator.end_training()
    return run.result


@contextlib.contextmanager
def open_directory(path: Path, main: bool, overwrite: bool, resume: bool) -> Iterator[RunDirectory]:
    """Give the run directory, locked by the main process, emptied unless its run goes on."""
    if not main:
        yield RunDirectory(path)
        return
    directory = RunDirectory.open(path) if resume else RunDirectory.claim(path)
    with directory.lock():
        if not resume:
            directory.make_room(overwrite)
        yield directory


def is_finished(directory: RunDirectory, recipe: Recipe) -> bool:
    """Whether the run there has done all the steps that `recipe` asks for."""
    result = directory.read_result()
    asked = recipe.training.model_dump(mode="json")
    return result.status == "finished" and all(result.recipe["training"][k] == asked[k] for k in ("steps", "epochs"))


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


def describe_memory(memory: dict[str, MemoryReport]) -> str:
    """Return one line: what the longest rows took, and how far the prediction was off."""
    measured, predicted = memory["measured"].peak_bytes, memory.get("predicted")
    line = f"memory with the longest rows: {measured / 2**20:,.1f} MiB measured"
    if predicted is None:
        return line
    steps = max(predicted.phases[phase] for phase in memory["measured"].phases if phase in predicted.phases)
    return f"{line}, {steps / 2**20:,.1f} MiB predicted ({steps / measured - 1:+.1%})"


def status_of(error: BaseException) -> str:
    if isinstance(error, DivergedError):
        return "diverged"
    if isinstance(error, OutOfMemoryError):
        return "out_of_memory"
    return "interrupted" if isinstance(error, KeyboardInterrupt | StoppedError) else "failed"


@dataclass
class Run:
    """One run while it goes: what it was given, and the result that it fills."""

    recipe: Recipe
    name: str
    accelerator: Accelerator
    directory: RunDirectory
    display: Any
    stop: Stop
    resume: bool = False
    phase: str = "start"

    def __post_init__(self):
        device = self.accelerator.device
        self.meter = MemoryMeter(device)
        self.result = RunResult(
            status="running",
            name=self.name,
            recipe=self.recipe.model_dump(mode="json"),
            environment=describe_environment(device, self.accelerator.num_processes),
        )
        self.recorder = Recorder(self.accelerator, self.directory.metrics, self.display, self.meter.current)

    def execute(self) -> None:
        """Do everything in order, each part a phase with its seconds and its peak of memory."""
        self.start_files()
        result = self.result
        with self.in_phase("load"):
            bench = prepare(self.recipe, self.accelerator, self.foresee)
        result.data = bench.dataset.report
        if "before" not in result.metrics:
            with self.in_phase("evaluation_before"):
                self.evaluate(bench, bench.model, "before", 0)
        with self.in_phase("apply"):
            model = self.apply(bench)
        with self.in_phase("training"):
            setup = self.run_training(bench, model)
        self.refuse_unfinished(setup)
        with self.in_phase("evaluation_after"):
            self.evaluate(bench, model, "after", result.progress.step)
        with self.in_phase("save"):
            self.save(bench, model)
        result.memory["process"] = self.meter.report(model, setup.optimizer)
        result.status = "finished"
        result.seconds["total"] = sum(seconds for phase, seconds in result.seconds.items() if phase != "total")
        self.write()
        if self.accelerator.is_main_process:
            draw_losses(self.recorder.history, f"{self.name}: {self.recipe.method.title}", self.directory.picture)

    def foresee(self, dataset: Dataset) -> None:
        """Predict the run's memory. Raises OutOfMemoryError for a run that will not fit, unless told to go on."""
        if self.recipe.run.plan == "off":
            return
        try:
            report = predict_run(self.recipe, dataset, self.accelerator.device)
        except Exception as error:  # a model that cannot be traced may still train: a forecast never ends a run
            self.display.note(f"no memory plan for this model: {type(error).__name__}: {error}")
            return
        self.result.memory["predicted"] = report
        if self.recipe.run.plan == "refuse":
            refuse_too_large(report)

    @contextlib.contextmanager
    def in_phase(self, phase: str) -> Iterator[None]:
        self.phase = phase
        started = time.perf_counter()
        with self.meter.phase(phase):
            yield
            synchronize(self.accelerator.device)
        self.result.seconds[phase] = self.result.seconds.get(phase, 0.0) + time.perf_counter() - started

    def start_files(self) -> None:
        if self.resume:
            self.take_up()
        if self.accelerator.is_main_process:
            self.directory.recipe.write_text(dump_recipe(self.recipe), encoding="utf-8")
        self.write()
        if self.recipe.run.trackers:
            self.accelerator.init_trackers(self.name)

    def take_up(self) -> None:
        """Keep what the run measured before it was stopped."""
        former = self.directory.read_result()
        kept = {"metrics", "examples", "seconds", "resumes", "audit"}
        self.result = self.result.model_copy(update={name: getattr(former, name) for name in kept})
        self.result.metrics.pop("after", None)

    def evaluate(self, bench: Bench, model: nn.Module, when: str, step: int) -> None:
        """Evaluate and keep metrics and generated examples as those `before` or `after` training."""
        if not bench.dataset.evaluation:
            return
        self.result.metrics[when] = bench.evaluate(model)
        self.recorder.log_evaluation(step, self.result.metrics[when])
        if bench.dataset.prompts and self.accelerator.is_main_process:
            examples = bench.generate_examples(model)
            kept = self.result.examples or [{"prompt": e["prompt"], "reference": e["reference"]} for e in examples]
            self.result.examples = [old | {when: new["output"]} for old, new in zip(kept, examples, strict=True)]

    def apply(self, bench: Bench) -> nn.Module:
        """Apply the method to the base and report what trains."""
        recipe = self.recipe
        if recipe.training.frozen_dropout == "off":
            disable_dropout(bench.model)
        set_seed(recipe.run.seed)
        model, self.result.parameters = apply_method(recipe, bench.model, bench.fresh)
        report = self.result.parameters
        self.display.note(
            f"{recipe.method.title}: {report.trainable:,} of {report.total:,} parameters train ({report.fraction:.3%})"
        )
        if recipe.training.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return model.to(self.accelerator.device)

    def run_training(self, bench: Bench, model: nn.Module) -> Setup:
        """Take the longest rows once, then run the loop, from the latest checkpoint if the run goes on."""
        audit = Audit(model)
        identity = checkpoints.describe_identity(self.recipe, bench, audit, self.result.environment)
        protected: set[int] = set()
        setup = build_setup(
            bench,
            model,
            self.stop,
            save=lambda setup: self.save_checkpoint(setup, identity, protected),
        )
        self.phase = "preflight"
        self.result.memory["measured"] = measure_longest(setup, model, bench.dataset.evaluation, bench.batch_size)
        self.display.note(describe_memory(self.result.memory))
        renew_optimizer(setup)
        self.phase = "training"
        self.recorder.start(setup.steps)
        if self.resume:
            protected.add(self.continue_from_checkpoint(setup, identity))
        self.result.progress = run_loop(setup, self.recorder, audit)
        if self.recorder.audit:
            self.result.audit = self.recorder.audit
            self.tell_audit(self.recorder.audit)
        if self.recipe.run.save_every and setup.progress.step == setup.steps:
            setup.save(setup)
        return setup

    def continue_from_checkpoint(self, setup: Setup, identity: dict[str, Any]) -> int:
        """Restore the latest whole checkpoint and return its step."""
        checkpoint, faults = checkpoints.find(self.directory.checkpoints, clean=self.accelerator.is_main_process)
        for fault in faults:
            self.display.note(f"passed over: {fault}")
        report = checkpoints.restore(checkpoint, setup, self.recorder, identity)
        if self.accelerator.is_main_process:
            self.recorder.rewind(checkpoint.step)
        self.result.resumes.append(report)
        exactly = "exactly" if report.exact else f"not exactly: {'; '.join(report.reasons)}"
        self.display.note(f"resumed after step {report.step} of {setup.steps} ({exactly})")
        return checkpoint.step

    def save_checkpoint(self, setup: Setup, identity: dict[str, Any], protected: set[int]) -> None:
        started = time.perf_counter()
        checkpoints.save(self.directory.checkpoints, setup, self.recorder, identity, protected)
        self.result.seconds["checkpoints"] = self.result.seconds.get("checkpoints", 0.0) + time.perf_counter() - started
        self.result.progress = setup.progress.model_copy()
        self.write()

    def refuse_unfinished(self, setup: Setup) -> None:
        """Raise StoppedError if a signal or the time limit ended training early; the checkpoint is written."""
        step, signal = setup.progress.step, self.stop.signal
        if step == setup.steps:
            return
        why = f"signal {signal}" if signal else "run.max_seconds" if self.stop.out_of_time else "run.stop_after"
        raise StoppedError(
            f"stopped after step {step} of {setup.steps} ({why}); its checkpoint is whole: --resume goes on", signal
        )

    def tell_audit(self, audit: AuditReport) -> None:
        """Say what the audit found. Raises MethodError if a frozen tensor changed: nothing after it can be trusted."""
        if audit.frozen_changed:
            raise MethodError(
                f"the audit found {len(audit.frozen_changed)} frozen tensors changed after {audit.steps} steps "
                f"({audit.frozen_changed[0]}, ...); this run cannot be trusted"
            )
        for what, names in (("got no gradient", audit.without_gradient), ("did not move", audit.unmoved)):
            if names:
                told = f"{len(names)} trainable tensors {what} in {audit.steps} steps: {names[0]}, ..."
                self.display.note(f"audit: {told}")

    def save(self, bench: Bench, model: nn.Module) -> None:
        """Write what trained, the tokenizer beside it, as one folder that appears whole."""
        if not self.accelerator.is_main_process:
            return
        context = {"base_model": bench.source, "task": self.recipe.model.task, "labels": bench.dataset.labels}
        with self.directory.writing(self.directory.weights) as temporary:
            self.recipe.method.save(model, temporary, context)
            bench.tokenizer.save_pretrained(temporary)

    def write(self) -> None:
        if self.accelerator.is_main_process:
            self.directory.write_result(self.result)
