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


def part_of(tensor: torch.Tensor) -> torch.Tensor | dict[str, Any]:
    """Return what a checkpoint keeps of a tensor on this process: its own rows and the whole shape, or all of it."""
    if not isinstance(tensor, DTensor):
        return tensor
    return {"part": tensor._local_tensor, "shape": tuple(tensor.shape)}


def is_part(value: Any) -> bool:
    """Return whether a value is what `part_of` returned for a divided tensor."""
    return isinstance(value, dict) and value.keys() == {"part", "shape"}


def whole_shape(value: Any) -> tuple[int, ...]:
    """Return the shape of a whole tensor, from it or from a part of it."""
    return tuple(value["shape"] if is_part(value) else value.shape)


def divided_as(tensor: Any, divided: torch.Tensor) -> torch.Tensor:
    """Return `tensor`, whole on every process or a part of it on each, divided as another one is.

    Nothing is exchanged.
    """
    if not isinstance(divided, DTensor):
        return tensor
    mesh, placements = divided.device_mesh, divided.placements
    if is_part(tensor):
        local = tensor["part"].to(divided._local_tensor.device, divided.dtype)
        return DTensor.from_local(
            local, mesh, placements, run_check=False, shape=divided.shape, stride=divided.stride()
        )
    return distribute_tensor(tensor.to(divided.device, divided.dtype), mesh, placements, src_data_rank=None)


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
