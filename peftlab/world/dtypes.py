"""Which types weights are kept in and computed in, for a device."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Types(NamedTuple):
    """The type of frozen weights, and the type that is computed in. Trained weights are float32 whatever these are."""

    weights: torch.dtype
    computation: torch.dtype

    def describe(self) -> dict[str, str]:
        """Return the names, as a recipe writes them."""
        return {part: str(dtype).removeprefix("torch.") for part, dtype in self._asdict().items()}

    def unpacked(self, compute_dtype: str) -> torch.dtype:
        """Return the type that quantised weights are unpacked to: `auto` is the type that is computed in."""
        return DTYPES.get(compute_dtype, self.computation)


def resolve_types(dtype: str, precision: str, device: torch.device) -> Types:
    """Return the types for `model.dtype` and `training.precision` on a device.

    If one of the two is `auto`, it follows the other. If both are, they are bfloat16 on CUDA and float32 on the CPU.
    """
    weights, computation = (precision if dtype == "auto" else dtype), (dtype if precision == "auto" else precision)
    return Types(*(DTYPES.get(name, default_type(device)) for name in (weights, computation)))


def default_type(device: torch.device) -> torch.dtype:
    """Return the type of weights and of computation on a device where a recipe names neither."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def autocast(precision: torch.dtype, device: torch.device) -> contextlib.AbstractContextManager:
    """Return a context that computes in `precision`; none is needed for float32."""
    if precision == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, precision)
