"""Packed rows of several lengths in one call of attention, on CUDA."""

from __future__ import annotations

import functools
from typing import ClassVar

import torch
from torch import nn

from peftlab.data.batches import group_rows
from peftlab.errors import one_line
from peftlab.recipe.schema import Recipe
from peftlab.speed import row_kernel
from peftlab.speed.attention import Pattern, attend_by_length, use_one_call
from peftlab.speed.base import Decline, SpeedUp
from peftlab.speed.packing import watch_packed_rows, why_padded
from peftlab.speed.row_kernel import TYPES, attend_rows
from peftlab.world.dtypes import autocast, resolve_types
from peftlab.world.hardware import cuda_capability, has_cuda

# Ampere is the first that flash attention runs on.
FIRST_CAPABILITY = (8, 0)
# The largest relative difference of outputs and gradients that 16 bits make.
ROUNDING = 3e-2
PROOF = ((None, 2), (4, 2), (None, 4))
"""Windows and heads of keys, of four heads of queries."""


class Varlen(SpeedUp):
    name: ClassVar[str] = "varlen"
    does: ClassVar[str] = "packed rows of several lengths are one call of flash attention"
    reads_weights: ClassVar[bool] = False

    def unavailable(self) -> str | None:
        if not has_cuda():
            return "it needs CUDA"
        found = row_kernel.find_kernel()
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


@functools.cache
def prove(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why one call's outputs or gradients are not those of a call for each length; None if they are."""
    if isinstance(missing := row_kernel.find_kernel(), str):
        return missing
    if device.type == "cuda" and cuda_capability(device) < FIRST_CAPABILITY:
        return "the device is older than flash attention needs"
    try:
        cases = ((window, heads, ahead) for window, heads in PROOF for ahead in (0, 3))
        found = max(_difference(device, dtype, window, heads, ahead) for window, heads, ahead in cases)
    except Exception as error:  # whatever a kernel does that this device does not have
        return f"torch's kernel fails ({type(error).__name__}: {one_line(str(error))[:100]})"
    return None if found <= ROUNDING else f"torch's kernel differs from rows one by one by {found:.0e}"


def _difference(device: torch.device, dtype: torch.dtype, window: int | None, heads: int, ahead: int) -> float:
    """Return the largest relative difference of outputs and gradients of rows of 5, 3, 1 and 9 tokens."""
    lengths, pattern, chance = (5, 3, 1, 9), Pattern(True, window, 0.3), torch.Generator().manual_seed(1)
    total = sum(lengths)
    shapes = (4, total), (heads, ahead + total), (heads, ahead + total)
    drawn = [torch.randn(1, *shape, 16, generator=chance).to(device, dtype) for shape in shapes]
    outer = torch.randn(1, total, 4, 16, generator=chance).to(device)
    sides = []
    for one_call in (True, False):
        # The other side in float32: its own rounding is none of the kernel's.
        query, key, value = leaves = [(one if one_call else one.float()).clone().requires_grad_() for one in drawn]
        with torch.enable_grad():
            if one_call:
                output = attend_rows(query, key, value, lengths, True, window, 0.3)
            else:
                output = attend_by_length(pattern, query, key, value, group_rows(lengths))
            gradients = torch.autograd.grad((output.float() * outer).sum(), leaves)
        sides.append([output.detach(), *gradients])
    return max(float((one - other).float().norm() / other.float().norm()) for one, other in zip(*sides, strict=True))
