"""Quantising a merged folder again: dense layers as bitsandbytes stores them and transformers loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from peftlab.errors import MissingRequirementError
from peftlab.models.config import auto_class
from peftlab.models.quantize import dense_names
from peftlab.runs.gate import TOLERANCES
from peftlab.runs.merge_bases import Merging
from peftlab.tasks.base import Task

FORMATS: dict[str, dict[str, Any]] = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}
REMEDY = "Write it without --quantize, or allow more with --tolerance, a part of what training changed"


def quantize_merged(folder: Path, work: Merging, kind: str, tolerance: float | None) -> dict[str, Any]:
    """Replace the weights of a merged folder by quantised ones; return the fields of the report that are about them.

    Transformers loads the folder again, and it is compared with the trained model. Raises StorageError where the
    difference is too large.
    """
    quantized = folder / kind
    _quantize(folder, quantized, kind, work.recipe.task, work.dtype)
    values: dict[str, Any] = {"quantize": kind}
    if work.gate is not None:
        model = auto_class(work.recipe.task).from_pretrained(quantized, local_files_only=True)
        found, limit = work.gate.compare(model), work.gate.limit(TOLERANCES[kind], tolerance)
        work.gate.check(found, limit, f"the model in {kind}", REMEDY)
        values |= {"quantized": found, "quantized_limit": limit}
    for file in folder.glob("model*.safetensors*"):
        file.unlink()
    for file in quantized.iterdir():
        file.replace(folder / file.name)
    quantized.rmdir()
    return values


def _quantize(plain: Path, out: Path, kind: str, task: Task, dtype: torch.dtype) -> None:
    """Write the model of a folder with its dense layers but the head in `kind`, everything else in `dtype`."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise MissingRequirementError(f"--quantize {kind} needs bitsandbytes: {error}") from error
    auto = auto_class(task)
    with torch.device("meta"):
        empty = auto.from_config(AutoConfig.from_pretrained(plain, local_files_only=True))
    settings = BitsAndBytesConfig(**FORMATS[kind], bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=_kept(empty))
    model = auto.from_pretrained(plain, quantization_config=settings, dtype=dtype, local_files_only=True)
    model.save_pretrained(out)


def _kept(model: nn.Module) -> list[str]:
    """Return the dense layers that stay plain: the head, and what a family needs in full."""
    chosen = set(dense_names(model))
    dense = (name for name, one in model.named_modules() if isinstance(one, nn.Linear | Conv1D))
    return [name for name in dense if name not in chosen]
