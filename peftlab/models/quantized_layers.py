"""Dense layers with a quantised weight: bitsandbytes' kernels, and parameters that keep their types.

bitsandbytes 0.50 casts a bias of another type in place in its forward pass. A frozen bias then has other bytes than
the base, and a trained one loses the float32 in which it is updated. These layers cast a copy.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import bitsandbytes
import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit
from torch.nn import functional as F

from peftlab.parameters.divided import has_numbers, whole


class FourBitLinear(Linear4bit):
    """A `Linear4bit` that computes in `compute_dtype` and returns its input's type."""

    weight: Params4bit

    @property
    def packing(self) -> QuantState:
        """How the weight is packed. Where processes divide the weights, only the layer knows it of a gathered one."""
        return getattr(self.weight, "quant_state", None) or self.quant_state

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.multiply(x.to(self.compute_dtype), cast_bias(self.bias, self.compute_dtype)).to(x.dtype)

    def multiply(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Return the product with the weight, plus `bias`; both have the compute type."""
        if has_numbers(self.weight):
            return GatheredFourBit.apply(x, self.weight, bias, self.packing)
        return bitsandbytes.matmul_4bit(x, self.weight, bias=bias, quant_state=self.packing)


class GatheredFourBit(torch.autograd.Function):
    """The product with a 4-bit weight that may be freed after the forward pass and gathered again for the backward one.

    bitsandbytes 0.50 keeps a view of the packed weight, and with it all of its memory.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: torch.Tensor, weight: Params4bit, bias: torch.Tensor | None, packing: QuantState
    ) -> torch.Tensor:
        ctx.save_for_backward(weight)
        ctx.packing = packing
        return bitsandbytes.matmul_4bit(x, weight, bias=bias, quant_state=packing)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        (weight,) = ctx.saved_tensors
        of_inputs, _, of_bias, _ = ctx.needs_input_grad
        return (
            gradient.matmul(unpack(cast(Params4bit, whole(weight)), ctx.packing).to(gradient.dtype))
            if of_inputs
            else None,
            None,
            gradient.reshape(-1, gradient.shape[-1]).sum(0) if of_bias else None,
            None,
        )


class UnalignedFourBitLinear(FourBitLinear):
    """A 4-bit layer for the CPU, for weights whose rows are not whole quantisation blocks.

    bitsandbytes 0.50's AVX512 kernel reads a row's scales as if every row began a block. If the number of inputs is
    a multiple of 16 but not of 64, weights get their neighbours' scales: an error of 20 to 40 % instead of 9 %
    (NF4). A single row has no neighbours. Keeps the dequantised weight in memory until the backward pass.
    """

    def multiply(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return F.linear(x, unpack(self.weight, self.packing).to(x.dtype), bias)


class EightBitLinear(Linear8bitLt):
    """A `Linear8bitLt`, which computes in its input's type.

    bitsandbytes 0.50 takes rows, or rows of rows, and fails on more dimensions (each head's, in latent attention).
    """

    weight: Int8Params

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.state.is_training = self.training
        if self.weight.CB is not None:
            self.init_8bit_state()
        rows = x.reshape(-1, x.shape[-1])
        output = bitsandbytes.matmul(rows, self.weight, bias=cast_bias(self.bias, x.dtype), state=self.state)
        return output.view(*x.shape[:-1], -1)


def cast_bias(bias: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """Return `bias` in another type; a copy where it has not that type already."""
    return None if bias is None else bias.to(dtype)


def unpack(weight: Params4bit, packing: QuantState | None = None) -> torch.Tensor:
    """Return the dequantised weight (n_out, n_in), for any number of inputs; `packing` is by default the weight's."""
    state = copy.copy(packing or weight.quant_state)
    n_out, n_in = state.shape
    state.shape = torch.Size((1, n_out * n_in))
    return dequantize_4bit(weight.data, state).view(n_out, n_in)
