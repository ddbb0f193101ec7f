"""Packed rows of several lengths in one call of attention, on CUDA."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from peftlab.recipe.schema import Recipe
from peftlab.speed.attention import use_one_call
from peftlab.speed.base import Decline, SpeedUp
from peftlab.speed.packing import watch_packed_rows, why_padded
from peftlab.speed.row_kernel import TYPES, find_kernel, prove
from peftlab.world.dtypes import autocast, resolve_types
from peftlab.world.hardware import has_cuda


class Varlen(SpeedUp):
    name: ClassVar[str] = "varlen"
    does: ClassVar[str] = "packed rows of several lengths are one call of flash attention"
    reads_weights: ClassVar[bool] = False

    def unavailable(self) -> str | None:
        if not has_cuda():
            return "it needs CUDA"
        found = find_kernel()
        return found if isinstance(found, str) else None

    def decline(self, model: nn.Module, recipe: Recipe) -> Decline | None:
        device = next(model.parameters()).device
        if device.type != "cuda":
            return Decline("it needs CUDA")
        if recipe.training.speed.packing == "off" or why_padded(model, recipe):
            return Decline("no rows are packed")
        computed = resolve_types(recipe.model.dtype, recipe.training.precision, device).computation
        if computed not in TYPES:
            return Decline("attention is computed in float32")
        reason = prove(device, computed) or _why_by_length(model, recipe, computed)
        return None if reason is None else Decline(reason)

    def apply(self, model: nn.Module, recipe: Recipe) -> str:
        use_one_call(model, True)
        return ""

    def remove(self, model: nn.Module) -> None:
        use_one_call(model, False)


def _why_by_length(model: nn.Module, recipe: Recipe, computed: torch.dtype) -> str | None:
    """Return why attention is computed for each length, from what its layers give it; None if it is one call."""
    with autocast(computed, next(model.parameters()).device):
        calls = watch_packed_rows(model, recipe.task.row_class.pooled)
    reasons = sorted({one.by_length for one in calls if one.by_length})
    return f"its attention has {' and '.join(reasons)}" if reasons else None
