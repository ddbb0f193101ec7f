"""A dense layer whose weight may be freed after its forward pass, and gathered again for its backward pass.

torch's own saves a view of the weight, and with it all of its memory; autocast keeps a copy of it until it ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.nn import functional

from peftlab.parameters.divided import whole

plain_linear = functional.linear


class GatheredLinear(torch.autograd.Function):
    """y = x·Wᵀ + b; saves the parameter itself, and `x` where it trains; casts as autocast would."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs if weight.requires_grad else None, weight)
        kind = inputs.device.type
        if not torch.is_autocast_enabled(kind):
            return plain_linear(inputs, weight, bias)
        dtype = torch.get_autocast_dtype(kind)
        with torch.autocast(kind, enabled=False):
            return plain_linear(inputs.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        """Return gradients in the type of the computation; autograd casts each to that of its tensor."""
        inputs, weight = ctx.saved_tensors
        of_inputs, of_weight, of_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            gradient.matmul(whole(weight).to(gradient.dtype)) if of_inputs else None,
            rows.t().mm(inputs.to(gradient.dtype).reshape(-1, inputs.shape[-1])) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def gathered_linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return what `torch.nn.functional.linear` returns; its arguments have the same names, by which peft gives them."""
    return GatheredLinear.apply(input, weight, bias)


@contextmanager
def gathered_linears() -> Iterator[None]:
    """While the context is open, every dense layer is computed so."""
    with mock.patch.object(functional, "linear", gathered_linear):
        yield
