"""RMS norm that saves its input in its own type and one number a row, in place of float32 copies."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from peftlab.nn.formulas import Formula
from peftlab.speed.dense import COMPUTED
from peftlab.speed.layers import LayerSpeedUp

EPSILONS = ("variance_epsilon", "eps")
SHIFTS = (0.0, 1.0)
"""What is added to the weight before it multiplies: Gemma's weights are stored as differences from one."""


class Rule(NamedTuple):
    """What a norm's own forward computes.

    It multiplies by the weight plus `shift`, in float32 where it `keeps_type`, and the output has the type of x; else
    x's type comes before the product, and the output has the wider of the types of x and the weight. Without `mixes`
    only inputs of the weight's own type are known.
    """

    shift: float
    keeps_type: bool
    mixes: bool


class RMSNorms(LayerSpeedUp):
    name: ClassVar[str] = "norm"
    does: ClassVar[str] = "RMS norms save their input in its own type, and no float32 copies of it"
    layers: ClassVar[str] = "RMS norms"

    def covers(self, module: nn.Module) -> bool:
        return type(module).__name__.endswith("RMSNorm") and not module._modules

    def why_not(self, module: nn.Module) -> str | None:
        return None if find_rule(module) is not None else f"{type(module).__name__} computes something else"

    def forward_of(self, module: nn.Module) -> Callable[..., Any]:
        rule = find_rule(module)
        assert rule is not None, "asked for one for which it can be done"
        return _forward_with(rule)


class RMSNorm(torch.autograd.Function):
    """x / √(mean(x²) + ε) · (w + shift) over the last dimension, computed in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, shift: float, keeps_type: bool) -> Tensor:
        normed, scale = NORM(x, weight, epsilon, shift, keeps_type)
        ctx.save_for_backward(x, weight, scale)
        ctx.shift = shift
        return normed  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        by_x, by_weight = GRADIENTS(*ctx.saved_tensors, gradient, ctx.shift, *ctx.needs_input_grad[:2])
        return by_x, by_weight, None, None, None


def _norm(x: Tensor, weight: Tensor, epsilon: float, shift: float, keeps_type: bool) -> tuple[Tensor, Tensor]:
    """Return the norm in the type that its rule says, and what each row was multiplied by."""
    inner = _computed(x)
    scale = torch.linalg.vector_norm(inner, dim=-1, keepdim=True).square_().div_(x.shape[-1])
    scale = scale.add_(epsilon).rsqrt_()
    normed = inner * scale
    if keeps_type or normed.dtype == x.dtype:
        return normed.mul_(weight.to(normed.dtype) + shift if shift else weight).to(x.dtype), scale
    return normed.to(x.dtype) * (weight + shift if shift else weight), scale


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


@functools.cache
def _forward_with(rule: Rule) -> Callable[..., Any]:
    """Return the function of a norm with this rule."""

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        return _normed(self, hidden_states, rule)

    return forward


def _normed(module: Any, x: Tensor, rule: Rule) -> Tensor:
    """Return the norm; by the module's own forward where nothing trains or the case is not ours."""
    weight = module.weight
    suits = x.dtype == weight.dtype or rule.mixes and {x.dtype, weight.dtype} <= {*COMPUTED}
    if not torch.is_grad_enabled() or not suits or hasattr(weight, "__tensor_flatten__"):
        return type(module).forward(module, x)  # type: ignore[no-any-return]
    return RMSNorm.apply(x, weight, _epsilon(module), rule.shift, rule.keeps_type)  # type: ignore[no-any-return]


def _epsilon(module: nn.Module) -> float:
    return float(next(getattr(module, name) for name in EPSILONS if hasattr(module, name)))


RULES = [Rule(shift, keeps, mixes) for mixes in (True, False) for shift in SHIFTS for keeps in (False, True)]


def find_rule(module: nn.Module) -> Rule | None:
    """Return the rule with which `module`'s own forward is `RMSNorm`, in float32 and bfloat16; None if it is not.

    That forward runs on a small weight put in place of the module's.
    """
    values = torch.arange(1.0, 49.0, device="cpu")
    x = torch.sin(values * 1.3).view(1, 6, 8) * torch.logspace(-2, 2, 6, device="cpu")[:, None]
    probe = copy.copy(module)
    probe.__dict__ = {name: value for name, value in module.__dict__.items() if name != "forward"}
    with torch.no_grad():
        return next((rule for rule in RULES if _agrees(probe, x, torch.cos(values[:8]), rule)), None)


def _agrees(probe: Any, x: Tensor, weight: Tensor, rule: Rule) -> bool:
    whole, half = torch.float32, torch.bfloat16
    types = [(whole, whole), (half, half), *([(half, whole), (whole, half)] if rule.mixes else [])]
    try:
        return all(_agrees_on(probe, x.to(one), weight.to(other), rule) for one, other in types)
    except Exception:  # whatever such a module does, its own forward remains
        return False


def _agrees_on(probe: Any, x: Tensor, weight: Tensor, rule: Rule) -> bool:
    probe.__dict__["_parameters"] = {"weight": nn.Parameter(weight, requires_grad=False)}
    wanted = type(probe).forward(probe, x)
    found = RMSNorm.apply(x, weight, _epsilon(probe), rule.shift, rule.keeps_type)
    exact = x.dtype == weight.dtype == torch.float32
    close = torch.allclose(found, wanted, rtol=1e-5 if exact else 0.01, atol=1e-6 if exact else 1e-3)
    return found.dtype == wanted.dtype and found.shape == wanted.shape and close
