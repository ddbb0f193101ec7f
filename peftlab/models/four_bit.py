"""A 4-bit layer for the CPU, for weights whose rows are not whole quantisation blocks."""

from __future__ import annotations

import copy

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Params4bit
from torch.nn import functional as F


class UnalignedLinear4bit(Linear4bit):
    """A `Linear4bit` with any number of inputs, dequantised as one long row.

    bitsandbytes 0.50's AVX512 kernel reads a row's scales as if every row began a block. If the number of inputs is
    a multiple of 16 but not of 64, weights get their neighbours' scales: an error of 20 to 40 % instead of 9 %
    (NF4). A single row has no neighbours. Keeps the dequantised weight in memory until the backward pass.
    """

    weight: Params4bit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = unpack(self.weight).to(self.compute_dtype)
        return F.linear(x.to(self.compute_dtype), weight, self.bias).to(x.dtype)


def unpack(weight: Params4bit) -> torch.Tensor:
    """Return the dequantised weight (n_out, n_in), for any number of inputs."""
    state = copy.copy(weight.quant_state)
    n_out, n_in = state.shape
    state.shape = torch.Size((1, n_out * n_in))
    return dequantize_4bit(weight.data, state).view(n_out, n_in)
