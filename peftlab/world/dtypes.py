"""Which types weights are kept in and computed in, for a device."""

from __future__ import annotations

import contextlib

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
