"""The saving stage: the trained weights with the tokenizer, and the loss curve."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peftlab.errors import one_line
from peftlab.evaluation.generate import save_generation
from peftlab.memory.probe import Probe, join_reports
from peftlab.runs.bench import Bench
from peftlab.runs.digests import LAST, WEIGHTS
from peftlab.runs.picture import draw_losses
from peftlab.runs.record import RunRecord
from peftlab.training.recorder import Recorder


def save_weights(
    record: RunRecord, bench: Bench, model: nn.Module, optimizer: torch.optim.Optimizer, step: int
) -> None:
    """Write what trained, the weights of `step`, and add the memory of saving to the record."""
    probe = record.watch.probe = Probe(record.world.device)
    with probe.alone("save", model, optimizer, record.world.engine_tensors()):
        write_weights(record, bench, model, record.directory.weights)
        if record.world.is_main:
            record.directory.forget_former()
    memory = record.result.memory
    memory["measured"] = join_reports([memory["measured"], probe.report()])
    record.result.saved_step = step
    record.write()
    record.seal([WEIGHTS, LAST])


def write_weights(record: RunRecord, bench: Bench, model: nn.Module, folder: Path) -> None:
    """Write what trained and the tokenizer as one folder, which appears only when it is complete.

    All processes must call this together; the main one writes.
    """
    with record.world.whole(model, everything=record.recipe.method.stores == "all"):
        if record.world.is_main:
            _write_whole(record, bench, model, folder)


def _write_whole(record: RunRecord, bench: Bench, model: nn.Module, folder: Path) -> None:
    write_folder(record, model, folder, bench.base.source, bench.dataset.labels, bench.tokenizer)


def write_folder(
    record: RunRecord,
    model: nn.Module,
    folder: Path,
    base: dict[str, Any],
    labels: Sequence[str] | None,
    tokenizer: Any,
) -> None:
    """Write a model's trained weights with what identifies its `base`, its classes and its tokenizer."""
    context = {"base_model": base, "task": record.recipe.task.name, "labels": labels}
    with record.directory.writing(folder) as temporary:
        record.recipe.method.save(model, temporary, context)
        save_tokenizer(tokenizer, temporary)
        save_generation(model, temporary)


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer without the limits of its last call, which a fast one keeps in its file.

    They would cut a reader's texts, and differ between a run and one that resumed after its rows were tokenised.
    """
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is not None:
        fast.no_truncation()
        fast.no_padding()
    tokenizer.save_pretrained(folder)


def draw_curve(record: RunRecord, recorder: Recorder) -> None:
    """Draw the loss curve; a picture that cannot be drawn does not end a run."""
    if not record.world.is_main:
        return
    path = record.directory.picture
    try:
        draw_losses(recorder.history, f"{record.name}: {record.recipe.method.title}", path)
    except Exception as error:
        record.display.note(f"{path} cannot be drawn: {type(error).__name__}: {one_line(error)}")
