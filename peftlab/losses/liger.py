"""The loss without logits by Liger's fused kernel on CUDA, for a frozen head whose logits are taken as they are.

https://github.com/linkedin/Liger-Kernel: `LigerFusedLinearCrossEntropyLoss`, from 0.5 on. It is proved on the device
before it is used.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
from torch import nn

from peftlab.errors import one_line
from peftlab.losses.after_head import AfterHead
from peftlab.losses.head_cross_entropy import computed_type

PACKAGE = "liger_kernel"
# Positions, width and classes of the proof: more classes than one block of a small kernel, and no power of two.
PROOF = (24, 64, 1000)
# The largest relative difference that rounding makes, by the type that is computed in.
ROUNDING = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def liger_total(hidden: torch.Tensor, head: nn.Linear, targets: torch.Tensor) -> torch.Tensor:
    """Return the summed cross-entropy in float32 of hidden states (positions, width) at `targets` (positions,).

    Differentiable to `hidden`, once. Computes in the type of autocast, where that is on.
    """
    dtype = computed_type(hidden)
    bias = None if head.bias is None else head.bias.detach().to(dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        return _total(hidden.to(dtype), head.weight.detach().to(dtype), bias, targets)


def why_no_liger(head: nn.Linear, after: AfterHead) -> str | None:
    """Return why Liger's kernel does not compute the loss after this head; None if it does."""
    if not head.weight.is_cuda:
        return "it needs CUDA"
    if missing := what_is_missing():
        return missing
    if any(one.requires_grad for one in head.parameters()):
        return "the output head trains"
    if after.changes_values:
        return "the model changes its logits after the head"
    return prove(head.weight.device, computed_type(head.weight))


@functools.cache
def what_is_missing() -> str | None:
    """Return which package Liger's kernel lacks here; None if it has all."""
    return None if importlib.util.find_spec(PACKAGE) else "the package liger-kernel is not installed"


@functools.cache
def prove(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why Liger's loss or its gradient is not torch's on a device, in a type; None if they are."""
    chance = torch.Generator().manual_seed(0)
    positions, width, classes = PROOF
    hidden, weight = (torch.randn(rows, width, generator=chance) for rows in (positions, classes))
    targets = torch.randint(classes, (positions,), generator=chance).to(device)
    hidden, weight = (one.to(device, dtype) for one in (hidden, weight * 0.2))
    try:
        found, wanted = (_with_slope(total, hidden, weight, targets) for total in (_total, _plain_total))
    except Exception as error:  # whatever a kernel does that this device or this version of Triton does not have
        return f"its kernel fails ({type(error).__name__}: {one_line(str(error))[:100]})"
    difference = max(float((ours - theirs).norm() / theirs.norm()) for ours, theirs in zip(found, wanted, strict=True))
    return None if difference <= ROUNDING[dtype] else f"its loss or gradient differs from torch's by {difference:.0e}"


def _total(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
) -> torch.Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    total: Any = LigerFusedLinearCrossEntropyLoss(reduction="sum")(weight, hidden, targets, bias)
    return total.float()  # type: ignore[no-any-return]


def _plain_total(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
) -> torch.Tensor:
    logits = nn.functional.linear(hidden.float(), weight.float(), bias)
    return nn.functional.cross_entropy(logits, targets, reduction="sum")


def _with_slope(total: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
    """Return a loss and its gradient to the hidden states, in float32; the loss is scaled, as a step does."""
    leaf = hidden.detach().requires_grad_()
    with torch.enable_grad():
        loss = total(leaf, weight, None, targets)
        (slope,) = torch.autograd.grad(loss / 8, leaf)
    return [loss.detach().reshape(1).float(), slope.float()]
