"""What hardware is here and what type to compute in; the only place that asks."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings

import torch

from peftlab.errors import MissingRequirementError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def quiet_libraries() -> None:
    """Keep the libraries' progress bars and advice off the user's terminal; their errors still raise."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in ("bitsandbytes", "accelerate", "peft", "httpx", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", module=r"(transformers|peft|bitsandbytes|datasets|accelerate|torch)\b")


def pick_device(wanted: str) -> torch.device:
    """Return the device of this process for `auto`, `cpu` or `cuda`.

    Raises MissingRequirementError for `cuda` on a machine without it.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise MissingRequirementError("run.device: cuda was asked for, but torch sees no CUDA device; use cpu or auto")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the type of frozen weights: `auto` is bfloat16 on CUDA and float32 on the CPU."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return DTYPES[name]


def resolve_precision(precision: str, dtype: str, device: torch.device) -> torch.dtype:
    """Return the type to compute in; `auto` follows explicit 16-bit weights, else the device."""
    if precision != "auto":
        return DTYPES[precision]
    return resolve_dtype(dtype, device)


def autocast(precision: torch.dtype, device: torch.device) -> contextlib.AbstractContextManager:
    """Return a context that computes in `precision`; none is needed for float32."""
    if precision == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, precision)


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that a clock read next is true."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
