"""RMS norm that saves its input in its own type and one number a row, in place of float32 copies."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from peftlab.nn.formulas import Formula
from peftlab.speed.layers import LayerSpeedUp

EPSILONS = ("variance_epsilon", "eps")
SHIFTS = (0.0, 1.0)
"""What is added to the weight before it multiplies: Gemma's weights are stored as differences from one."""


class RMSNorms(LayerSpeedUp):
    name: ClassVar[str] = "norm"
    does: ClassVar[str] = "RMS norms save their input in its own type, and no float32 copies of it"
    layers: ClassVar[str] = "RMS norms"

    def covers(self, module: nn.Module) -> bool:
        return type(module).__name__.endswith("RMSNorm") and not module._modules

    def why_not(self, module: nn.Module) -> str | None:
        return None if find_shift(module) is not None else f"{type(module).__name__} computes something else"

    def forward_of(self, module: nn.Module) -> Callable[..., Any]:
        return forward if find_shift(module) == 0 else forward_shifted


class RMSNorm(torch.autograd.Function):
    """x / √(mean(x²) + ε) · (w + shift) over the last dimension, computed in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, shift: float) -> Tensor:
        normed, scale = NORM(x, weight, epsilon, shift)
        ctx.save_for_backward(x, weight, scale)
        ctx.shift = shift
        return normed  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        by_x, by_weight = GRADIENTS(*ctx.saved_tensors, gradient, ctx.shift, *ctx.needs_input_grad[:2])
        return by_x, by_weight, None, None


def _norm(x: Tensor, weight: Tensor, epsilon: float, shift: float) -> tuple[Tensor, Tensor]:
    """Return the norm in the type of `x`, and what each row was multiplied by."""
    inner = _computed(x)
    scale = torch.linalg.vector_norm(inner, dim=-1, keepdim=True).square_().div_(x.shape[-1])
    scale = scale.add_(epsilon).rsqrt_()
    normed = inner * scale
    if shift:
        return normed.mul_(weight.to(normed.dtype) + shift).to(x.dtype), scale
    return (normed.mul_(weight) if normed.dtype == x.dtype == weight.dtype else normed.to(x.dtype) * weight), scale


def _gradients(
    x: Tensor, weight: Tensor, scale: Tensor, gradient: Tensor, shift: float, of_x: bool, of_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    normed, outer = _computed(x) * scale, gradient.to(scale.dtype)
    by_weight = (outer * normed).sum_to_size(weight.shape).to(weight.dtype) if of_weight else None
    if not of_x:
        return None, by_weight
    by_normed = outer * (weight.to(scale.dtype) + shift)
    along = (by_normed * normed).mean(-1, keepdim=True)
    return by_normed.addcmul_(normed, along, value=-1).mul_(scale).to(x.dtype), by_weight


NORM, GRADIENTS = Formula(_norm), Formula(_gradients)


def _computed(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def forward(self: Any, hidden_states: Tensor) -> Tensor:
    """Return the norm; by the module's own forward where nothing trains."""
    return _normed(self, hidden_states, 0.0)


def forward_shifted(self: Any, hidden_states: Tensor) -> Tensor:
    """Return the norm by a weight stored as its difference from one; by the own forward where nothing trains."""
    return _normed(self, hidden_states, 1.0)


def _normed(module: Any, x: Tensor, shift: float) -> Tensor:
    weight = module.weight
    if not torch.is_grad_enabled() or x.dtype != weight.dtype or hasattr(weight, "__tensor_flatten__"):
        return type(module).forward(module, x)  # type: ignore[no-any-return]
    return RMSNorm.apply(x, weight, _epsilon(module), shift)  # type: ignore[no-any-return]


def _epsilon(module: nn.Module) -> float:
    return float(next(getattr(module, name) for name in EPSILONS if hasattr(module, name)))


def find_shift(module: nn.Module) -> float | None:
    """Return the shift with which `module`'s own forward is `RMSNorm`, in float32 and bfloat16; None if it is not.

    That forward runs on a small weight put in place of the module's.
    """
    values = torch.arange(1.0, 49.0, device="cpu")
    x = torch.sin(values * 1.3).view(1, 6, 8) * torch.logspace(-2, 2, 6, device="cpu")[:, None]
    probe = copy.copy(module)
    probe.__dict__ = {name: value for name, value in module.__dict__.items() if name != "forward"}
    try:
        with torch.no_grad():
            return next((shift for shift in SHIFTS if _agrees(probe, x, torch.cos(values[:8]), shift)), None)
    except Exception:  # whatever such a module does, its own forward remains
        return None


def _agrees(probe: Any, x: Tensor, weight: Tensor, shift: float) -> bool:
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = x.to(dtype), weight.to(dtype)
        probe.__dict__["_parameters"] = {"weight": nn.Parameter(weight, requires_grad=False)}
        wanted = type(probe).forward(probe, x)
        found = RMSNorm.apply(x, weight, _epsilon(probe), shift)
        exact = dtype == torch.float32
        close = torch.allclose(found, wanted, rtol=1e-5 if exact else 0.01, atol=1e-6 if exact else 1e-3)
        if found.dtype != wanted.dtype or found.shape != wanted.shape or not close:
            return False
    return True
