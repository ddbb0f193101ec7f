"""A gated feed-forward, down(f(gate(x))·up(x)), as one autograd function that saves x, gate(x) and up(x) alone.

The activation and the product are computed again in the backward pass, which costs no matrix product. x is
saved only where a weight of gate or up trains.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from peftlab.nn.formulas import Formula
from peftlab.speed.dense import Dense, DenseLayer, Needs, Weights, fits, flat, is_watched, owned, read_dense, shaped
from peftlab.speed.layers import LayerSpeedUp

PARTS = ("gate_proj", "up_proj", "down_proj")
ACTIVATIONS = ("act_fn", "activation_fn")
TENSORS = len(Weights._fields)


class Activation(NamedTuple):
    """An activation f, its product f(gate)·up, and the gradient to gate from (f(gate)'s over up, gate, up)."""

    forward: Callable[[Tensor], Tensor]
    product: Formula
    by_gate: Formula


def _activation(forward: Callable[[Tensor], Tensor], backward: Callable[[Tensor, Tensor], Tensor]) -> Activation:
    """Return it from a function, and that function's gradient from (its output's gradient, its input)."""
    return Activation(
        forward,
        Formula(lambda gate, up: forward(gate).mul_(up)),
        Formula(
            lambda outer, gate, up: backward(outer.mul_(up), gate),
            lambda outer, gate, up: backward(outer * up, gate),
        ),
    )


def _gelu(approximate: str) -> Activation:
    return _activation(
        functools.partial(torch.nn.functional.gelu, approximate=approximate),
        functools.partial(torch.ops.aten.gelu_backward, approximate=approximate),
    )


SILU = _activation(torch.nn.functional.silu, torch.ops.aten.silu_backward)
CANDIDATES = (SILU, _gelu("none"), _gelu("tanh"))


class FeedForwards(LayerSpeedUp):
    name: ClassVar[str] = "feed_forward"
    does: ClassVar[str] = "gated feed-forwards compute their activation again in the backward pass, and save less"
    layers: ClassVar[str] = "gated feed-forwards"

    def covers(self, module: nn.Module) -> bool:
        return is_gated(module)

    def why_not(self, module: nn.Module) -> str | None:
        parts = read_parts(module, "cpu")
        if isinstance(parts, str):
            return parts
        return None if find_activation(module) else f"{type(module).__name__} computes something else"

    def forward_of(self, module: nn.Module) -> Callable[..., Any]:
        activation = find_activation(module)
        assert activation is not None, "asked for one for which it can be done"
        return FORWARDS[activation]


class GatedFeedForward(torch.autograd.Function):
    """The output of three `DenseLayer`s and an activation, (rows, n_out), with the gradients of input and weights."""

    @staticmethod
    def forward(
        ctx: Any, layers: tuple[DenseLayer, ...], activation: Activation, x: Tensor, *tensors: Tensor | None
    ) -> Tensor:
        parts = _by_part(tensors)
        gate, up = (layer.multiply(x, weights) for layer, weights in zip(layers[:2], parts[:2], strict=True))
        inner = activation.product(gate.output, up.output)
        output, low, mask = layers[2].multiply(inner, parts[2])
        ctx.layers, ctx.activation, ctx.size = layers, activation, x.shape
        needs = _needs(ctx)
        lows = [one if part.up else None for one, part in zip((gate.low, up.low, low), needs, strict=True)]
        saved = x if needs[0].input or needs[1].input else None
        ctx.save_for_backward(*tensors, *lows, gate.mask, up.mask, mask, saved, gate.output, up.output)
        return owned(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, low_gate, low_up, low_down, mask_gate, mask_up, mask_down, x, gate, up = ctx.saved_tensors
        parts, needs = _by_part(tensors), _needs(ctx)
        rows, outer = None if x is None else flat(x), flat(gradient)
        activated = ctx.activation.forward(gate)
        inner = activated * up if needs[2].input else None
        down = ctx.layers[2].gradients(needs[2], outer, parts[2], inner, low_down, mask_down)
        del inner, outer
        found: Any = (None, *[None] * TENSORS), (None, *[None] * TENSORS)
        if down.x is not None:
            by_up = activated.mul_(down.x)
            of_up = ctx.layers[1].gradients(needs[1], by_up, parts[1], rows, low_up, mask_up)
            del by_up, activated
            by_gate = ctx.activation.by_gate(down.x, gate, up)
            of_gate = ctx.layers[0].gradients(needs[0], by_gate, parts[0], rows, low_gate, mask_gate, into=of_up.x)
            found = of_gate, of_up
        by_x = found[0][0]
        return (None, None, None if by_x is None else by_x.view(ctx.size), *found[0][1:], *found[1][1:], *down[1:])


def _by_part(tensors: Any) -> list[Weights]:
    return [Weights(*tensors[start : start + TENSORS]) for start in range(0, len(tensors), TENSORS)]


def _needs(ctx: Any) -> list[Needs]:
    """Return what is needed of gate, up and down; the input of down where anything before it is needed."""
    _, _, of_input, *rest = ctx.needs_input_grad
    groups = [tuple(rest[start : start + TENSORS]) for start in range(0, len(rest), TENSORS)]
    before = of_input or any(groups[0]) or any(groups[1])
    return [Needs(wanted, *group) for wanted, group in zip((of_input, of_input, before), groups, strict=True)]


def forward_with(activation: Activation, self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return what the module's own forward returns; by that where nothing trains or the case is not ours."""
    if torch.is_grad_enabled() and not args and not kwargs:
        parts = read_parts(self, x.device.type)
        if not isinstance(parts, str) and all(fits(part, x) for part in parts):
            layers = tuple(part.layer for part in parts)
            tensors = [tensor for part in parts for tensor in part.weights]
            return shaped(GatedFeedForward.apply(layers, activation, x, *tensors), x)
    return type(self).forward(self, x, *args, **kwargs)


def _forward_with(activation: Activation) -> Callable[..., Tensor]:
    def forward(self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return forward_with(activation, self, x, *args, **kwargs)

    return forward


FORWARDS = {activation: _forward_with(activation) for activation in CANDIDATES}


def read_parts(module: nn.Module, device: str) -> list[Dense] | str:
    """Return gate, up and down as they are now; why they cannot be computed here, in one line."""
    if any(is_watched(one) for one in module.children()):
        return "a hook"
    found = []
    for name in PARTS:
        dense = read_dense(module.get_submodule(name), device)
        if isinstance(dense, str):
            return f"{name}: {dense}"
        found.append(dense)
    if (found[0].layer.packed is None) != (found[1].layer.packed is None):
        return "gate and up differ in their format"
    return found


def is_gated(module: nn.Module) -> bool:
    """Whether `module` looks like a gated feed-forward: it has the three projections, under their usual names."""
    return all(name in module._modules for name in PARTS)


def find_activation(module: nn.Module) -> Activation | None:
    """Return the activation with which `module`'s own forward is down(f(gate(x))·up(x)); None if it is something else.

    That forward runs on small layers put in place of the module's, so this needs neither weights nor their device.
    """
    if set(module._modules) - set(PARTS) - set(ACTIVATIONS):
        return None
    # From rows in which activations differ to rows that a clamp would change.
    sizes = torch.logspace(-1, 2, 16, dtype=torch.float64, device="cpu")
    x = (torch.linspace(-1, 1, 64, dtype=torch.float64, device="cpu").view(16, 4) * sizes[:, None]).unsqueeze(0)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            probe = _with_small_layers(module)
            wanted = type(module).forward(probe, x)
            gate, up = probe.gate_proj(x), probe.up_proj(x)
            tried = ((one, probe.down_proj(one.forward(gate) * up)) for one in CANDIDATES)
            return next((one for one, found in tried if _equal(found, wanted)), None)
    except Exception:  # whatever such a module does, its own forward remains
        return None


def _equal(found: Tensor, wanted: Tensor) -> bool:
    return found.shape == wanted.shape and torch.allclose(found, wanted, rtol=1e-6, atol=1e-9)


def _with_small_layers(module: nn.Module) -> Any:
    probe = copy.copy(module)
    probe.__dict__ = {name: value for name, value in module.__dict__.items() if name != "forward"}
    sizes = {"gate_proj": (4, 6), "up_proj": (4, 6), "down_proj": (6, 4)}
    small = {name: _small_linear(*size, shift) for shift, (name, size) in enumerate(sizes.items())}
    probe.__dict__["training"] = True  # dropout is active, if there is any
    probe.__dict__["_modules"] = {**module._modules, **small}
    return probe


def _small_linear(n_in: int, n_out: int, shift: int) -> nn.Linear:
    layer = nn.Linear(n_in, n_out, bias=False, dtype=torch.float64, device="cpu")
    values = torch.arange(n_in * n_out, dtype=torch.float64, device="cpu").view(n_out, n_in)
    layer.weight = nn.Parameter(torch.cos(values * (1.7 + shift)), requires_grad=False)
    return layer
