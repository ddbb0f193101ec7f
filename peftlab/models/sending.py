"""A GGUF file that the first process reads for all: a tensor is sent when its place is filled, and freed at once.

Where transformers makes each tensor of one of the file, one is unpacked at a time; otherwise the first process has all
of them unpacked while they are sent.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from peftlab.models.stored_tensors import GgufTensors

Read = Callable[[], torch.Tensor]


class SentTensor:
    """A tensor of which transformers asks rows, as of one in a file. All processes must ask at the same point."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, mesh: DeviceMesh, read: Read | None):
        self.shape, self.dtype, self._mesh, self._read = shape, dtype, mesh, read

    def get_shape(self) -> list[int]:
        return list(self.shape)

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def __getitem__(self, index: Any) -> torch.Tensor:
        device = self._mesh.device_type
        if self._read is None:
            whole = torch.empty(self.shape, dtype=self.dtype, device=device)
        else:
            whole = self._read().to(device, self.dtype).contiguous()
        distributed.broadcast(whole, group=self._mesh.get_group(), group_src=0)
        return whole[index]


def sent_tensors(
    file: Path,
    model: PreTrainedModel,
    dtype: torch.dtype,
    mesh: DeviceMesh,
    whole: Callable[[], dict[str, torch.Tensor]],
) -> dict[str, SentTensor]:
    """Return the tensors of a GGUF file by the model's names; `whole` unpacks all of them."""
    reads = _reads(file, model, whole) if mesh.get_local_rank() == 0 else {}
    shapes: list[Any] = [{name: shape for name, (shape, _) in reads.items()}]
    distributed.broadcast_object_list(shapes, group=mesh.get_group(), group_src=0)
    return {
        name: SentTensor(shape, dtype, mesh, reads[name][1] if reads else None) for name, shape in shapes[0].items()
    }


def _reads(
    file: Path, model: PreTrainedModel, whole: Callable[[], dict[str, torch.Tensor]]
) -> dict[str, tuple[tuple[int, ...], Read]]:
    lazy = GgufTensors(file, model)
    if lazy.shapes:
        return {name: (shape, partial(lazy.read, name)) for name, shape in lazy.shapes.items()}
    found = whole()
    return {name: (tuple(one.shape), partial(found.pop, name)) for name, one in dict(found).items()}
