"""Rotary position embedding in three operations on queries and on keys, in place of seven, in both directions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from peftlab.nn.formulas import Formula
from peftlab.speed.layers import LayerSpeedUp

NAME = "apply_rotary_pos_emb"
"""The function that transformers' attention layers call, a global of each model's file."""
DIMENSION = "unsqueeze_dim"
HALF = (torch.bfloat16, torch.float16)


class Rule(NamedTuple):
    """What a rotary function does beside rotating halves, as far as it is known.

    `keeps_type` says whether 16-bit inputs stay so where cos and sin are float32, None that it does something else;
    `passes_rest` whether what cos is too narrow for is passed on; `takes_dimension` whether `unsqueeze_dim` says along
    which dimension cos and sin are alike.
    """

    keeps_type: bool | None
    passes_rest: bool
    takes_dimension: bool


class Rotations(LayerSpeedUp):
    name: ClassVar[str] = "rotary"
    does: ClassVar[str] = "positions are rotated into queries and keys in three operations"
    layers: ClassVar[str] = "rotating attention layers"

    def covers(self, module: nn.Module) -> bool:
        return is_rotating(module)

    def why_not(self, module: nn.Module) -> str | None:
        rotates = not _calls_another(module) and find_rule(type(module).forward.__globals__[NAME])
        return None if rotates else "it rotates otherwise"

    def forward_of(self, module: nn.Module) -> Callable[..., Any]:
        return _with_own_rotation(type(module).forward)


class Rotation(torch.autograd.Function):
    """x·cos + (−x₂, x₁)·sin, x₁ and x₂ the halves of the last dimension; saves cos and sin, which layers share.

    The output has the wider of the types of x and cos.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = x.dtype
        return ROTATE(x, cos, sin)  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return ROTATE_BACK(gradient, cos, sin).to(ctx.dtype), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    output = x * cos
    x = x.to(output.dtype)
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


def _rotate(plain: Callable[..., Any], rule: Rule, *args: Any, **kwargs: Any) -> Any:
    """Return what `plain`, a model's own function, returns; by that where nothing trains or the case is not ours.

    An indexer rotates its queries alone, by name.
    """
    usual = kwargs.keys() <= {DIMENSION} and len(args) == 4 and all(isinstance(one, Tensor) for one in args)
    if not usual or not torch.is_grad_enabled():
        return plain(*args, **kwargs)
    q, k, cos, sin = args
    dimension = kwargs.get(DIMENSION, 1)
    if not _suits(rule, q, k, cos, sin, dimension):
        return plain(*args, **kwargs)
    return _rotate_both(q, k, cos, sin, dimension, bool(rule.keeps_type))


def _suits(rule: Rule, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dimension: int) -> bool:
    if not q.dim() == k.dim() == 4 or cos.dim() != 3 or cos.requires_grad or sin.requires_grad:
        return False
    mixed = rule.keeps_type is not None and q.dtype in HALF and cos.dtype == torch.float32
    typed = q.dtype == k.dtype and cos.dtype == sin.dtype and (mixed or q.dtype == cos.dtype)
    wide = q.shape[-1] == k.shape[-1] >= cos.shape[-1] and (rule.passes_rest or q.shape[-1] == cos.shape[-1])
    return typed and wide and (dimension == 1 or dimension == 2 and rule.takes_dimension)


def _rotate_both(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, dimension: int = 1, keeps_type: bool = False
) -> tuple[Tensor, Tensor]:
    cos, sin = cos.unsqueeze(dimension), sin.unsqueeze(dimension)
    return _rotate_one(q, cos, sin, keeps_type), _rotate_one(k, cos, sin, keeps_type)


def _rotate_one(x: Tensor, cos: Tensor, sin: Tensor, keeps_type: bool) -> Tensor:
    width = cos.shape[-1]
    if width == x.shape[-1]:
        rotated: Tensor = Rotation.apply(x, cos, sin)
    else:
        rotated = Rotation.apply(x[..., :width], cos, sin)
        rotated = torch.cat([rotated, x[..., width:]], -1)
    return rotated.to(x.dtype) if keeps_type else rotated


def is_rotating(module: nn.Module) -> bool:
    """Whether the module's own forward calls the rotary function of its file."""
    forward = type(module).forward
    code = getattr(forward, "__code__", None)
    return code is not None and NAME in code.co_names and NAME in forward.__globals__


@functools.cache
def _with_own_rotation(forward: Any) -> Callable[..., Any]:
    """Return a copy of a forward function that calls `_rotate` under the name of its file's rotary function."""
    names = forward.__globals__
    rule = find_rule(names[NAME])
    assert rule is not None, "asked for one for which it can be done"
    own = functools.partial(_rotate, names[NAME], rule)
    copied = FunctionType(forward.__code__, {**names, NAME: own}, "forward", forward.__defaults__, forward.__closure__)
    copied.__kwdefaults__, copied.__module__ = forward.__kwdefaults__, __name__
    return copied


def _calls_another(module: nn.Module) -> bool:
    """Whether the module rotates by another function of its file, as its configuration says (DeepSeek-V3's pairs)."""
    others = any(name.startswith(f"{NAME}_") for name in type(module).forward.__code__.co_names)
    return others and getattr(getattr(module, "config", None), "rope_interleave", True)


@functools.cache
def find_rule(plain: Callable[..., Any]) -> Rule | None:
    """Return what a rotary function does; None if it does not rotate halves, as exactly as `Rotation` does and no more.

    It runs on a few numbers.
    """
    if not (_agrees(plain) and _agrees(plain, torch.bfloat16)):
        return None
    mixed = (keeps for keeps in (False, True) if _agrees(plain, torch.bfloat16, torch.float32, keeps_type=keeps))
    return Rule(next(mixed, None), _agrees(plain, width=4), _agrees(plain, dimension=2))


def _agrees(
    plain: Callable[..., Any],
    dtype: torch.dtype = torch.float64,
    of_cos: torch.dtype | None = None,
    *,
    width: int = 8,
    dimension: int = 1,
    keeps_type: bool = False,
) -> bool:
    """Return whether a rotary function gives what `_rotate_both` does, for cos of this width and type."""
    values = torch.arange(1.0, 97.0, dtype=torch.float64, device="cpu")
    q, k = torch.sin(values).view(2, 2, 3, 8), torch.cos(values[:48]).view(2, 1, 3, 8)
    if dimension == 2:
        q, k = q.transpose(1, 2), k.transpose(1, 2)
    cos, sin = (torch.cos(values[: 6 * width] * factor).view(2, 3, width) for factor in (0.7, 1.3))
    q, k, cos, sin = q.to(dtype), k.to(dtype), cos.to(of_cos or dtype), sin.to(of_cos or dtype)
    asked = {} if dimension == 1 else {DIMENSION: dimension}
    try:
        with torch.no_grad():
            found, theirs = _rotate_both(q, k, cos, sin, dimension, keeps_type), plain(q, k, cos, sin, **asked)
            exact = plain(*(one.double() for one in (q, k, cos, sin)), **asked)
            alike = all(one.dtype == other.dtype for one, other in zip(found, theirs, strict=True))
            return alike and _distance(found, exact) <= max(1.2 * _distance(theirs, exact), 1e-12)
    except Exception:  # whatever such a function takes, it remains
        return False


def _distance(found: Any, wanted: Any) -> float:
    return max((one.double() - other).abs().mean().item() for one, other in zip(found, wanted, strict=True))
