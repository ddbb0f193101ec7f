"""What a run will take, predicted from its own rows before a weight is loaded, and whether it may start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import psutil
import torch
from accelerate import Accelerator

from peftlab.data.dataset import Dataset
from peftlab.errors import OutOfMemoryError
from peftlab.memory.blueprint import build_blueprint
from peftlab.memory.predict import predict
from peftlab.memory.sizes import format_bytes
from peftlab.recipe.schema import Recipe
from peftlab.reports import MemoryReport
from peftlab.runs.longest import answers_to, longest_prompts, longest_work
from peftlab.training.dropout import disable_dropout


def foresee(
    recipe: Recipe,
    dataset: Dataset,
    accelerator: Accelerator,
    memory: dict[str, MemoryReport],
    note: Callable[[str], None],
) -> None:
    """Enter the run's predicted ledger into `memory`, or note why there is none.

    Raises OutOfMemoryError for a run that will not fit, unless it is told to go on.
    """
    if recipe.run.plan == "off":
        return
    try:
        report = predict_run(recipe, dataset, accelerator.device)
    except Exception as error:  # a model that cannot be traced may still train: a forecast never ends a run
        note(f"no memory plan for this model: {type(error).__name__}: {error}")
        return
    memory["predicted"] = report
    if recipe.run.plan == "refuse":
        refuse_too_large(report)


def predict_run(recipe: Recipe, dataset: Dataset, device: torch.device) -> MemoryReport:
    """Return the predicted ledger of the run's longest rows, with what the device has free as its capacity."""
    blueprint = build_blueprint(recipe, device, dataset.labels, disable_dropout)
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    options = {} if capability is None else {"capability": capability}
    work = longest_work(blueprint.workload(), dataset)
    prompts = longest_prompts(recipe, dataset, blueprint.fake.model)
    work = replace(work, answers=answers_to(prompts, recipe))
    return predict(blueprint, work, capacity_bytes=free_bytes(device), **options)


def free_bytes(device: torch.device) -> int:
    """Return the memory that a run could take on this device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def refuse_too_large(report: MemoryReport) -> None:
    """Raise OutOfMemoryError, naming ways out, for a run that will not fit."""
    if report.fits is not False:
        return
    raise OutOfMemoryError(
        f"this run needs {format_bytes(report.needed_bytes)} and {format_bytes(report.capacity_bytes)} are free; "
        "lower training.batch_size or data.max_length, set training.gradient_checkpointing=true, take another "
        "method (peftlab plan shows each), or run.plan=report to start all the same"
    )
