"""Tensors of which each process has a part: the whole of one, and this process's own part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor


def is_divided(tensor: torch.Tensor) -> bool:
    """Return whether each process has a part of a tensor."""
    return isinstance(tensor, DTensor)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return all of a tensor. All processes must call this together for one that is divided among them."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_gradient(parameter: torch.Tensor) -> torch.Tensor | None:
    """Return all of a parameter's gradient, None without one, as `whole` does."""
    return None if parameter.grad is None else whole(parameter.grad)


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this process has of a tensor, in the same memory: all of one that is not divided."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def divided_as(tensor: torch.Tensor, divided: torch.Tensor) -> torch.Tensor:
    """Return `tensor`, which is whole on every process, divided as another one is; nothing is exchanged."""
    if not isinstance(divided, DTensor):
        return tensor
    mesh, placements = divided.device_mesh, divided.placements
    return distribute_tensor(tensor.to(divided.dtype), mesh, placements, src_data_rank=None)


@contextmanager
def packed_as_plain(model: nn.Module) -> Iterator[None]:
    """While the context is open, 4-bit weights are plain parameters of their packed bytes, so that they can be divided.

    What has replaced them at its end says how it is packed (`quant_state`), as the layer does.
    """
    layers: list[Any] = [one for one in model.modules() if type(one._parameters.get("weight")).__name__ == "Params4bit"]
    for layer in layers:
        layer.quant_state = layer.weight.quant_state
        layer.weight = nn.Parameter(layer.weight.data, requires_grad=False)
    yield
    for layer in layers:
        layer.weight.quant_state = layer.quant_state
