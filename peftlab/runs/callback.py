"""peftlab's audit, counts and memory inside another trainer's run: a callback of transformers' `Trainer`.

TRL's `SFTTrainer` and every other trainer that is derived from it take the same callback.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from peftlab.errors import MethodError, StorageError
from peftlab.files import why, write_atomically
from peftlab.memory.measure import MemoryMeter
from peftlab.parameters.audit import Audit
from peftlab.parameters.report import parameter_report
from peftlab.parameters.trainable import find_base
from peftlab.reports import CallbackReport
from peftlab.runs.versions import describe_versions
from peftlab.training.loop import AUDITED_STEPS

RECORD = "peftlab.json"


class PeftlabCallback(TrainerCallback):
    """Counts what trains, audits the first steps, and measures memory; `report` has it, and `peftlab.json` on disk.

    The file is in the trainer's `output_dir`, written after the audit, at each save and at the end. With `strict`, a
    frozen tensor that changed in the audited steps ends the training with MethodError; else it is only reported.
    """

    def __init__(self, strict: bool = True) -> None:
        self.strict = strict
        self.report: CallbackReport | None = None
        self._audit: Audit | None = None
        self._meter: MemoryMeter | None = None
        self._phase: Any = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any):
        """Count the model and remember every tensor. Waits for the device once."""
        model = parts["model"]
        self._audit = Audit(model)
        self._meter = MemoryMeter(args.device)
        self._phase = self._meter.phase("training")
        self._phase.__enter__()
        self.report = CallbackReport(
            model=type(find_base(model)[1]).__name__,
            parameters=parameter_report(model),
            versions=describe_versions(),
            start_step=state.global_step,
        )
        self._write(args, state)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ):
        """Note which trainable tensors have a gradient, in the first steps."""
        if self._audit is not None and not self._audit.finished:
            self._audit.observe_gradients(parts["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any):
        """Finish the audit after its last step."""
        if self._audit is not None and not self._audit.finished and self._audit.steps >= AUDITED_STEPS:
            self._finish_audit(args, state, parts["model"])

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any):
        """Add the bytes in use to the trainer's own line, which its trackers get."""
        if self._meter is not None and state.log_history:
            state.log_history[-1]["memory_bytes"] = self._meter.current()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any):
        self._measure(parts["model"], parts.get("optimizer"))
        self._write(args, state)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any):
        """Finish an audit of fewer steps, measure, and write the record."""
        if self._audit is not None and not self._audit.finished and self._audit.steps:
            self._finish_audit(args, state, parts["model"])
        if self._phase is not None:
            self._phase.__exit__(None, None, None)
            self._phase = None
        self._measure(parts["model"], parts.get("optimizer"))
        self._write(args, state, finished=True)

    def _finish_audit(self, args: TrainingArguments, state: TrainerState, model: torch.nn.Module) -> None:
        assert self._audit is not None and self.report is not None, "training has begun"
        found = self._audit.finish(model)
        self.report = self.report.model_copy(update={"audit": found})
        self._write(args, state)
        if found.frozen_changed and self.strict:
            raise MethodError(
                f"the audit found {len(found.frozen_changed)} frozen tensors changed after {found.steps} steps "
                f"({found.frozen_changed[0]}, ...); this run cannot be trusted"
            )

    def _measure(self, model: torch.nn.Module, optimizer: Any) -> None:
        if self._meter is not None and self.report is not None:
            plain = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
            self.report = self.report.model_copy(update={"memory": self._meter.report(model, plain)})

    def _write(self, args: TrainingArguments, state: TrainerState, finished: bool = False) -> None:
        """Write the record. Raises StorageError."""
        if self.report is None or not state.is_world_process_zero:
            return
        lines = [line for line in state.log_history if "loss" in line or "eval_loss" in line]
        update = {"steps": state.global_step, "finished": finished, "log": lines}
        self.report = self.report.model_copy(update=update)
        path = Path(str(args.output_dir)) / RECORD
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, self.report.model_dump_json(indent=2) + "\n")
        except OSError as error:
            raise StorageError(f"{path}: cannot be written: {why(error)}") from None
