"""One recipe from start to result: load, measure the base, apply the method, train, measure, save."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from peftlab.device import quiet_libraries, synchronize
from peftlab.errors import DivergedError, OutOfMemoryError
from peftlab.memory.measure import MemoryMeter
from peftlab.parameters.audit import Audit
from peftlab.recipe.dump import dump_recipe
from peftlab.recipe.schema import Recipe, Training
from peftlab.reports import Progress, RunResult
from peftlab.runs.accelerator import open_accelerator
from peftlab.runs.bench import Bench, apply_method, prepare
from peftlab.runs.directory import RunDirectory
from peftlab.runs.display import open_display
from peftlab.runs.environment import describe_environment
from peftlab.runs.picture import draw_losses
from peftlab.training.dropout import disable_dropout
from peftlab.training.loop import Setup
from peftlab.training.loop import train as run_loop
from peftlab.training.optimizer import build_optimizer, build_schedule
from peftlab.training.recorder import Recorder
from peftlab.training.step import StepRows


def train(recipe: Recipe, *, name: str = "run", overwrite: bool = False, display=None) -> RunResult:
    """Run `recipe` and return its result, which also lies in the run directory with everything else.

    The directory is the recipe's `run.output` or `runs/NAME`. Every ending writes `result.json` with its
    status; faults that a user can meet raise a PeftlabError.
    """
    quiet_libraries()
    path = Path(recipe.run.output or Path("runs") / name)
    accelerator = open_accelerator(recipe, path)
    main = accelerator.is_main_process
    directory = RunDirectory.create(path, overwrite) if main else RunDirectory(path)
    accelerator.wait_for_everyone()
    run = Run(recipe, name, accelerator, directory, display or open_display(main), MemoryMeter(accelerator.device))
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
    return "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"


def count_steps(training: Training, rows: int, processes: int) -> int:
    """Return the optimiser steps; epochs are rounded up to whole steps."""
    if training.steps is not None:
        return training.steps
    return math.ceil(training.epochs * rows / (training.batch_size * training.gradient_accumulation * processes))


@dataclass
class Run:
    """One run while it goes: what it was given, and the result that it fills."""

    recipe: Recipe
    name: str
    accelerator: Accelerator
    directory: RunDirectory
    display: Any
    meter: MemoryMeter
    phase: str = "start"

    def __post_init__(self):
        self.result = RunResult(
            status="running",
            name=self.name,
            recipe=self.recipe.model_dump(mode="json"),
            environment=describe_environment(self.accelerator.device, self.accelerator.num_processes),
        )

    def execute(self) -> None:
        """Do everything in order, each part a phase with its seconds and its peak of memory."""
        recipe, result = self.recipe, self.result
        self.start_files()
        with self.in_phase("load"):
            bench = prepare(recipe, self.accelerator)
        result.data = bench.dataset.report
        with self.in_phase("evaluation_before"):
            self.evaluate(bench, bench.model, "before", 0)
        with self.in_phase("apply"):
            model = self.apply(bench)
        with self.in_phase("training"):
            optimizer = self.run_training(bench, model)
        with self.in_phase("evaluation_after"):
            self.evaluate(bench, model, "after", result.progress.step)
        with self.in_phase("save"):
            self.save(bench, model, self.directory.weights)
        result.memory["measured"] = self.meter.report(model, optimizer)
        result.status = "finished"
        result.seconds["total"] = sum(result.seconds.values())
        self.write()
        if self.accelerator.is_main_process:
            draw_losses(self.recorder.history, f"{self.name}: {recipe.method.title}", self.directory.picture)

    @contextlib.contextmanager
    def in_phase(self, phase: str) -> Iterator[None]:
        self.phase = phase
        started = time.perf_counter()
        with self.meter.phase(phase):
            yield
            synchronize(self.accelerator.device)
        self.result.seconds[phase] = time.perf_counter() - started

    def start_files(self) -> None:
        if self.accelerator.is_main_process:
            self.directory.recipe.write_text(dump_recipe(self.recipe), encoding="utf-8")
        self.write()
        if self.recipe.run.trackers:
            self.accelerator.init_trackers(self.name)
        self.recorder = Recorder(self.accelerator, self.directory.metrics, self.display, self.meter.current)

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
        if recipe.training.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return model.to(self.accelerator.device)

    def run_training(self, bench: Bench, model: nn.Module) -> torch.optim.Optimizer:
        """Run the loop over the data and return the optimiser with its states."""
        recipe, accelerator = self.recipe, self.accelerator
        audit = Audit(model)
        training = recipe.training
        rows = StepRows(
            bench.dataset.train,
            bench.dataset.pad_id,
            training.batch_size,
            training.gradient_accumulation,
            accelerator.process_index,
            accelerator.num_processes,
            recipe.run.seed,
        )
        steps = count_steps(training, len(bench.dataset.train), accelerator.num_processes)
        self.recorder.start(steps)
        optimizer = build_optimizer(model, training, accelerator.device)
        # Dropout must differ between processes, while data order and initialisation must not.
        torch.manual_seed(recipe.run.seed + accelerator.process_index)
        setup = Setup(
            accelerator=accelerator,
            recipe=recipe,
            model=accelerator.prepare_model(model),
            optimizer=optimizer,
            schedule=build_schedule(optimizer, training, steps),
            rows=rows,
            precision=bench.precision,
            steps=steps,
            evaluate=lambda: bench.evaluate(model),
            save=lambda progress: self.save_checkpoint(bench, model, progress),
        )
        self.result.progress = run_loop(setup, self.recorder, audit)
        self.result.audit = self.recorder.audit
        return optimizer

    def save_checkpoint(self, bench: Bench, model: nn.Module, progress: Progress) -> None:
        self.save(bench, model, self.directory.checkpoints / f"step-{progress.step:06}")
        self.result.progress = progress
        self.write()

    def save(self, bench: Bench, model: nn.Module, folder: Path) -> None:
        if not self.accelerator.is_main_process:
            return
        context = {"base_model": bench.source, "task": self.recipe.model.task, "labels": bench.dataset.labels}
        with self.directory.writing(folder) as temporary:
            self.recipe.method.save(model, temporary, context)
            bench.tokenizer.save_pretrained(temporary)

    def write(self) -> None:
        if self.accelerator.is_main_process:
            self.directory.write_result(self.result)
