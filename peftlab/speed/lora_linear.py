"""A LoRA layer as one autograd function: its input is saved once in its own type, and nothing for frozen weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from peftlab.speed.dense import DenseLayer, Needs, Weights, fits, flat, owned, read_dense, shaped
from peftlab.speed.layers import LayerSpeedUp


class LoraLinears(LayerSpeedUp):
    name: ClassVar[str] = "linear"
    does: ClassVar[str] = "LoRA layers save their input once, in its own type, and nothing for frozen weights"
    layers: ClassVar[str] = "LoRA layers"

    def covers(self, module: nn.Module) -> bool:
        from peft.tuners.lora import LoraLayer

        return isinstance(module, LoraLayer)

    def why_not(self, module: nn.Module) -> str | None:
        dense = read_dense(module, "cpu")
        return dense if isinstance(dense, str) else None

    def forward_of(self, module: nn.Module) -> Callable[..., Any]:
        return forward


class LoraLinear(torch.autograd.Function):
    """The product of a `DenseLayer`, (rows, n_out), with the gradients of its input and of what trains of it."""

    @staticmethod
    def forward(ctx: Any, layer: DenseLayer, x: Tensor, *tensors: Tensor | None) -> Tensor:
        weights, needs = Weights(*tensors), Needs(*ctx.needs_input_grad[1:])
        output, low, mask = layer.multiply(x, weights)
        ctx.layer, ctx.size = layer, x.shape
        ctx.save_for_backward(
            *weights,
            x if needs.input else None,
            low if needs.up else None,
            mask,
        )
        return owned(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, x, low, mask = ctx.saved_tensors
        rows = None if x is None else flat(x)
        needs = Needs(*ctx.needs_input_grad[1:])
        found = ctx.layer.gradients(needs, flat(gradient), Weights(*tensors), rows, low, mask)
        return (None, None if found.x is None else found.x.view(ctx.size), *found[1:])


def forward(self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return what the module's own forward returns; that itself where nothing trains or the case is not ours."""
    if torch.is_grad_enabled() and not args and not kwargs:
        dense = read_dense(self, x.device.type)
        if not isinstance(dense, str) and fits(dense, x):
            return shaped(LoraLinear.apply(dense.layer, x, *dense.weights), x)
    return type(self).forward(self, x, *args, **kwargs)
