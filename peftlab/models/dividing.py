"""Loading a checkpoint tensor by tensor: each process keeps its rows of every weight, dense ones are packed at once.

transformers builds the model on the meta device and reads a tensor when its place is filled. For a place that is a
divided tensor it reads this process's rows alone (safetensors' `get_slice`). Where it makes tensors of several of the
file (experts), each tensor is read whole, one at a time, and cut at once; so is a weight of which a process cannot pack
its rows alone. A GGUF file is read by the first process.
`_load_pretrained_model`, `set_param_for_module` and the `safe_open` that it imports are private to transformers: tried
with 5.23.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, core_model_loading, modeling_utils
from transformers.core_model_loading import WeightConverter
from transformers.quantizers.quantizer_gguf import GgufHfQuantizer

from peftlab.models.quantize import dense_names
from peftlab.models.quantizer import Quantizer
from peftlab.models.sending import sent_tensors
from peftlab.parameters.divided import divide, divided_as, own_part, own_rows, places_of, replace_, rows_as_divided
from peftlab.world.hardware import return_freed_memory

# transformers reads with several threads ahead of what it fills, so that a whole model of read tensors may wait.
ONE_AT_A_TIME = "HF_DEACTIVATE_ASYNC_LOAD"
# Bytes that are read until freed memory is returned: that takes milliseconds, and unpacking takes several times them.
FREED_AT_ONCE = 64 * 2**20

Seen = Callable[[nn.Module], None]


@contextmanager
def reading_parts(mesh: DeviceMesh | None, quantizer: Quantizer | None, seen: Seen) -> Iterator[None]:
    """While the context is open, `from_pretrained` keeps this process's rows, and packs what `quantizer` does.

    `seen` is called with each layer before its weight is packed. Without both arguments nothing is changed.
    """
    if mesh is None and quantizer is None:
        yield
        return
    reading = _Reading(mesh, quantizer, seen)
    former = os.environ.get(ONE_AT_A_TIME)
    places: list[tuple[Any, str, Any]] = [
        (PreTrainedModel, "_load_pretrained_model", staticmethod(reading.load(PreTrainedModel._load_pretrained_model))),
        (core_model_loading, "set_param_for_module", reading.place(core_model_loading.set_param_for_module)),
        # A file that is mapped would remain so, all of it, as long as one tensor of it does.
        (modeling_utils, "safe_open", _not_mapped(modeling_utils.safe_open)),
    ]
    if mesh is not None:
        places.append((GgufHfQuantizer, "get_state_dict", _sent(GgufHfQuantizer.get_state_dict, mesh)))
    kept = [(owner, name, vars(owner)[name]) for owner, name, _ in places]
    for owner, name, value in places:
        setattr(owner, name, value)
    os.environ[ONE_AT_A_TIME] = "1"
    try:
        yield
    finally:
        for owner, name, value in kept:
            setattr(owner, name, value)
        os.environ.pop(ONE_AT_A_TIME) if former is None else os.environ.update({ONE_AT_A_TIME: former})


class _Reading:
    """What is done with each tensor of a checkpoint when its place is filled."""

    def __init__(self, mesh: DeviceMesh | None, quantizer: Quantizer | None, seen: Seen):
        self._mesh, self._quantizer, self._seen = mesh, quantizer, seen
        self._packs: set[nn.Module] = set()
        self._freed_bytes = 0

    def load(self, read: Callable[..., Any]) -> Callable[..., Any]:
        def read_parts(model: Any, state_dict: Any, checkpoint_files: Any, load_config: Any, *more: Any) -> Any:
            if self._quantizer is not None:
                self._packs = {model.get_submodule(name) for name in dense_names(model)}
            if self._mesh is None:
                return read(model, state_dict, checkpoint_files, load_config, *more)
            if not any(isinstance(one, WeightConverter) for one in load_config.weight_mapping or ()):
                self._take_rows(model, self._mesh)
            found = read(model, state_dict, checkpoint_files, load_config, *more)
            _agree(found[0], self._mesh)
            _make_whole(model, found[0].missing_and_mismatched())
            return found

        return read_parts

    def place(self, place: Callable[..., None]) -> Callable[..., None]:
        def place_and_keep(model: nn.Module, name: str, value: torch.Tensor, info: Any, quantizer: Any) -> None:
            place(model, name, value, info, quantizer)
            path, _, leaf = name.rpartition(".")
            module = model.get_submodule(path)
            filled = module._parameters.get(leaf)
            if filled is None or filled.is_meta:
                return
            read_bytes = value.nbytes
            if leaf == "weight" and module in self._packs:
                self._pack(module)
                _free(value)
            elif self._mesh is not None and filled.dim():
                part = _own_memory(filled) if isinstance(filled, DTensor) else divide(filled, self._mesh)
                replace_(filled, part, [(module, leaf)])
            self._return_freed(read_bytes)

        return place_and_keep

    def _pack(self, module: Any) -> None:
        assert self._quantizer is not None
        self._seen(module)
        self._quantizer.pack_read(module)

    def _return_freed(self, read_bytes: int) -> None:
        self._freed_bytes += read_bytes
        if self._freed_bytes > FREED_AT_ONCE:
            return_freed_memory()
            self._freed_bytes = 0

    def _take_rows(self, model: nn.Module, mesh: DeviceMesh) -> None:
        """Make divided tensors of the places of which this process reads its rows alone."""
        for parameter, places in places_of(model.modules()).items():
            if parameter.dim() and all(self._keeps_rows(module, leaf) for module, leaf in places):
                replace_(parameter, _empty_part(parameter, mesh), places)

    def _keeps_rows(self, module: nn.Module, leaf: str) -> bool:
        if self._quantizer is None or leaf != "weight" or module not in self._packs:
            return True
        return self._quantizer.takes_rows(module)


def _free(value: torch.Tensor) -> None:
    """Free the memory of a tensor that transformers keeps until it has read the next one."""
    for one in (value, value._base):
        if one is not None:
            one.data = one.new_empty(0)


def _not_mapped(open_file: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that opens safetensors and reads what is asked for, into memory of its own."""
    return lambda *args, **options: open_file(*args, **options | {"backend": "pread"})


def _sent(unpack: Callable[..., Any], mesh: DeviceMesh) -> Callable[..., Any]:
    def send(quantizer: Any, file: str, model: PreTrainedModel) -> Any:
        if quantizer.supported:  # its tensors are read one at a time
            return unpack(quantizer, file, model)
        return sent_tensors(Path(file), model, quantizer.dtype, mesh, lambda: unpack(quantizer, file, model))

    return send


def _empty_part(parameter: torch.Tensor, mesh: DeviceMesh) -> DTensor:
    rows = own_rows(parameter.shape, mesh)
    own = torch.empty(rows.stop - rows.start, *parameter.shape[1:], dtype=parameter.dtype, device="meta")
    return rows_as_divided(own, parameter.shape, mesh)


def _own_memory(part: torch.Tensor) -> torch.Tensor:
    """Return a divided tensor whose rows are not a view of the whole in a mapped file, which would remain mapped."""
    rows = own_part(part)
    if rows.untyped_storage().nbytes() == rows.nbytes:
        return part.detach()
    return divided_as({"part": rows.detach().clone(), "shape": part.shape}, part)


def _agree(info: Any, mesh: DeviceMesh) -> None:
    """Let all processes miss what one misses: rows of a tensor of another size may fit on some."""
    everywhere: list[Any] = [None] * mesh.size()
    distributed.all_gather_object(everywhere, (info.missing_keys, info.mismatched_keys), mesh.get_group())
    info.missing_keys = set().union(*(missing for missing, _ in everywhere))
    known = {entry[0]: entry for _, mismatched in reversed(everywhere) for entry in mismatched}
    info.mismatched_keys = set(known.values())


def _make_whole(model: nn.Module, names: set[str]) -> None:
    """Make places that no file fills whole ones without memory: they are drawn as one process draws them."""
    for name in names:
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        parameter = module._parameters.get(leaf)
        if isinstance(parameter, DTensor):
            empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
            module._parameters[leaf] = nn.Parameter(empty, parameter.requires_grad)
