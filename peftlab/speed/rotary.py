"""Rotary position embedding in three operations on queries and on keys, in place of seven, in both directions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from peftlab.nn.formulas import Formula
from peftlab.speed.layers import LayerSpeedUp

NAME = "apply_rotary_pos_emb"
"""The function that transformers' attention layers call, a global of each model's file."""


class Rotations(LayerSpeedUp):
    name: ClassVar[str] = "rotary"
    does: ClassVar[str] = "positions are rotated into queries and keys in three operations"
    layers: ClassVar[str] = "rotating attention layers"

    def covers(self, module: nn.Module) -> bool:
        return is_rotating(module)

    def why_not(self, module: nn.Module) -> str | None:
        return None if _computes_halves(type(module).forward.__globals__[NAME]) else "it rotates otherwise"

    def forward_of(self, module: nn.Module) -> Callable[..., Any]:
        return _with_own_rotation(type(module).forward)


class Rotation(torch.autograd.Function):
    """x·cos + (−x₂, x₁)·sin, x₁ and x₂ the halves of the last dimension; saves cos and sin, which layers share."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return ROTATE(x, cos, sin)  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return ROTATE_BACK(gradient, cos, sin), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    output = x * cos
    output[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    output[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return output


def _turn_back(gradient: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = gradient.shape[-1] // 2
    found = gradient * cos
    found[..., :half].addcmul_(gradient[..., half:], sin[..., half:])
    found[..., half:].addcmul_(gradient[..., :half], sin[..., :half], value=-1)
    return found


ROTATE, ROTATE_BACK = Formula(_turn), Formula(_turn_back)


def _rotate(plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return what `plain`, a model's own function, returns; by that where nothing trains or the case is not ours.

    An indexer rotates its queries alone, by name.
    """
    if kwargs or len(args) != 4 or not all(isinstance(one, Tensor) for one in args):
        return plain(*args, **kwargs)
    q, k, cos, sin = args
    own = torch.is_grad_enabled() and q.dtype == k.dtype == cos.dtype == sin.dtype
    whole = q.dim() == k.dim() == 4 and cos.dim() == 3 and q.shape[-1] == k.shape[-1] == cos.shape[-1]
    if not own or not whole or cos.requires_grad or sin.requires_grad:
        return plain(q, k, cos, sin)
    return _rotate_both(q, k, cos, sin)


def _rotate_both(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return Rotation.apply(q, cos, sin), Rotation.apply(k, cos, sin)


def is_rotating(module: nn.Module) -> bool:
    """Whether the module's own forward calls the rotary function of its file."""
    forward = type(module).forward
    code = getattr(forward, "__code__", None)
    return code is not None and NAME in code.co_names and NAME in forward.__globals__


@functools.cache
def _with_own_rotation(forward: Any) -> Callable[..., Any]:
    """Return a copy of a forward function that calls `_rotate` under the name of its file's rotary function."""
    names = forward.__globals__
    own = functools.partial(_rotate, names[NAME])
    copied = FunctionType(forward.__code__, {**names, NAME: own}, "forward", forward.__defaults__, forward.__closure__)
    copied.__kwdefaults__, copied.__module__ = forward.__kwdefaults__, __name__
    return copied


@functools.cache
def _computes_halves(plain: Callable[..., Any]) -> bool:
    """Whether a rotary function rotates halves of all of the last dimension, as `Rotation` does and no more exactly."""
    values = torch.arange(1.0, 97.0, dtype=torch.float64, device="cpu")
    q, k = torch.sin(values).view(2, 2, 3, 8), torch.cos(values[:48]).view(2, 1, 3, 8)
    cos, sin = (torch.cos(values[:48] * factor).view(2, 3, 8) for factor in (0.7, 1.3))
    try:
        with torch.no_grad():
            exact = _distance(_rotate_both(q, k, cos, sin), plain(q, k, cos, sin)) < 1e-12
            low = [one.bfloat16() for one in (q, k, cos, sin)]
            wanted = plain(*(one.double() for one in low))
            return exact and _distance(_rotate_both(*low), wanted) < 1.2 * _distance(plain(*low), wanted)
    except Exception:  # whatever such a function takes, it remains
        return False


def _distance(found: Any, wanted: Any) -> float:
    return max((one.double() - other).abs().mean().item() for one, other in zip(found, wanted, strict=True))
