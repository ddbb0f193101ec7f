"""Tensors of which each process has a part: the whole of one, and this process's own part.

FSDP 2 divides a tensor by rows (a `DTensor`). ZeRO-3 of DeepSpeed divides a parameter's numbers in their order, in
equal parts of which the last one is padded: the parameter itself is empty unless it is gathered, and has its part in
`ds_tensor`, its shape in `ds_shape` (deepspeed/runtime/zero/partition_parameters.py of 0.19.8).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor


def is_divided(tensor: torch.Tensor) -> bool:
    """Return whether each process has a part of a tensor."""
    return isinstance(tensor, DTensor) or has_numbers(tensor)


def has_numbers(tensor: torch.Tensor) -> bool:
    """Return whether each process has some of a parameter's numbers, in their order, as ZeRO-3 divides it."""
    return hasattr(tensor, "ds_tensor")


def own_numbers(parameter: Any) -> torch.Tensor:
    """Return this process's numbers of such a parameter, in the same memory, without padding."""
    own = parameter.ds_tensor
    return own[: max(parameter.ds_numel - parameter.ds_zero_partition_rank * own.numel(), 0)]


def numbers_of(parameter: Any, tensor: torch.Tensor) -> torch.Tensor:
    """Return of a whole tensor the numbers that this process has of such a parameter."""
    size = parameter.ds_tensor.numel()
    start = parameter.ds_zero_partition_rank * size
    return tensor.reshape(-1)[start : start + size]


def own_rows(shape: Sequence[int], mesh: DeviceMesh) -> slice:
    """Return the rows of a tensor of this shape that this process has, as torch's `chunk` divides them."""
    size = -(-shape[0] // mesh.size())
    start = min(mesh.get_local_rank() * size, shape[0])
    return slice(start, min(start + size, shape[0]))


def rows_as_divided(rows: torch.Tensor, shape: torch.Size, mesh: DeviceMesh) -> DTensor:
    """Return this process's rows of a tensor of `shape` as a divided tensor; nothing is exchanged."""
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(rows.contiguous(), mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)


def divide(tensor: torch.Tensor, mesh: DeviceMesh) -> DTensor:
    """Return a tensor that is whole on every process divided by rows, with memory of its own for this process's."""
    return rows_as_divided(tensor.detach()[own_rows(tensor.shape, mesh)].clone(), tensor.shape, mesh)


def cast_(parameter: torch.Tensor, dtype: torch.dtype) -> None:
    """Give a parameter another type; it remains the same object."""
    if isinstance(parameter, DTensor) and parameter.dtype != dtype:
        # Setting `data` would leave its own rows in their type (torch 2.13).
        torch.utils.swap_tensors(parameter, nn.Parameter(parameter.detach().to(dtype), parameter.requires_grad))
    else:
        parameter.data = parameter.data.to(dtype)


def move_(model: nn.Module, device: torch.device) -> None:
    """Move a model to a device, where divided weights are already."""
    kept = {one: dict(vars(one)) for one in model.parameters() if isinstance(one, DTensor)}
    model.to(device)
    for parameter, attributes in kept.items():  # torch 2.13 swaps in new ones without them, moved or not
        vars(parameter).update(attributes)


def places_of(modules: Iterable[nn.Module]) -> dict[nn.Parameter, list[tuple[nn.Module, str]]]:
    """Return for each parameter of modules themselves where it is, a tied one in several places."""
    places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for module in modules:
        for name, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(parameter, []).append((module, name))
    return places


def replace_(former: torch.Tensor, value: torch.Tensor, places: Iterable[tuple[nn.Module, str]]) -> nn.Parameter:
    """Put a parameter of this value, with the attributes of the former one, into its places, and return it."""
    new = nn.Parameter(value, former.requires_grad)
    vars(new).update(vars(former))
    for module, name in places:
        module._parameters[name] = new
    return new


def divide_(model: nn.Module, mesh: DeviceMesh) -> None:
    """Divide by rows every weight of a model that is whole, in place; a packed one by its bytes."""
    found = places_of(model.modules())
    while found:  # what is divided is freed before the next one is
        parameter, places = found.popitem()
        if isinstance(parameter, DTensor) or parameter.dim() == 0:
            continue
        new: Any = replace_(parameter, divide(parameter.data, mesh), places)
        if hasattr(new, "quant_state"):
            for module, _ in places:  # of a gathered weight only the layer knows how it is packed
                module.quant_state = new.quant_state


def whole_in_turn(model: nn.Module) -> Iterator[tuple[nn.Parameter, list[tuple[nn.Module, str]]]]:
    """Yield each parameter that is divided by rows, whole and in its places, which it is given one after the other.

    All processes must take them together. What the caller does with one is done before the next one is whole.
    """
    found = [one for one in places_of(model.modules()).items() if isinstance(one[0], DTensor)][::-1]
    while found:
        parameter, places = found.pop()
        yield replace_(parameter, whole(parameter.detach()), places), places


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return all of a tensor. All processes must call this together for one that is divided among them."""
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    return _joined(tensor) if has_numbers(tensor) else tensor


def _joined(parameter: Any) -> torch.Tensor:
    """Return all of a parameter whose numbers are divided, itself where it is gathered."""
    if parameter.numel() == parameter.ds_numel:
        return parameter
    own = parameter.ds_tensor
    parts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, own)
    return torch.cat(parts)[: parameter.ds_numel].view(parameter.ds_shape)


def are_finite(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return for each tensor whether all of it is finite. All processes must call this together for divided ones."""
    own = [own_numbers(one) if has_numbers(one) else one.detach() for one in tensors]
    found = torch.stack([whole(torch.isfinite(one).all()) for one in own])
    if any(map(has_numbers, tensors)):
        everywhere = found.int()
        distributed.all_reduce(everywhere, distributed.ReduceOp.MIN)
        return everywhere.bool()
    return found


def whole_gradient(parameter: torch.Tensor) -> torch.Tensor | None:
    """Return all of a parameter's gradient, None without one, as `whole` does."""
    return None if parameter.grad is None else whole(parameter.grad)


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this process has of a tensor, in the same memory: all of one that is not divided."""
    if isinstance(tensor, DTensor):
        return tensor._local_tensor
    return getattr(tensor, "ds_tensor", tensor)


def part_of(tensor: torch.Tensor) -> torch.Tensor | dict[str, Any]:
    """Return what a checkpoint keeps of a tensor on this process: its own part and the whole shape, or all of it."""
    if has_numbers(tensor):
        return {"part": own_numbers(tensor), "shape": whole_shape(tensor)}
    if not isinstance(tensor, DTensor):
        return tensor
    (placement,) = tensor.placements
    if not isinstance(placement, Shard):
        return tensor._local_tensor
    dimension = placement.dim % tensor.dim()
    # Rows are the usual case, and what checkpoints of earlier versions say nothing of.
    along = {"dimension": dimension} if dimension else {}
    return {"part": tensor._local_tensor, "shape": tuple(tensor.shape)} | along


def is_part(value: Any) -> bool:
    """Return whether a value is what `part_of` returned for a divided tensor."""
    return isinstance(value, dict) and value.keys() - {"dimension"} == {"part", "shape"}


def whole_shape(value: Any) -> tuple[int, ...]:
    """Return the shape of a whole tensor, from it or from a part of it."""
    return tuple(value["shape"] if is_part(value) else getattr(value, "ds_shape", value.shape))


def whole_count(tensor: torch.Tensor) -> int:
    """Return how many numbers a whole tensor has."""
    return prod(whole_shape(tensor))


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
