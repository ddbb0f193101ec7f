"""Loading a checkpoint of which each process keeps its rows of every weight: the whole is nowhere.

transformers builds the model on the meta device and reads a tensor when its place is filled. For a place that is a
divided tensor it reads this process's rows alone (safetensors' `get_slice`). Where it makes tensors of several of the
file (experts), each tensor is read whole, one at a time, and cut at once. A GGUF file is read by the first process.
`_load_pretrained_model` and `set_param_for_module` are private to it: tried with transformers 5.23.
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
from transformers import PreTrainedModel, core_model_loading
from transformers.core_model_loading import WeightConverter
from transformers.quantizers.quantizer_gguf import GgufHfQuantizer

from peftlab.models.sending import sent_tensors
from peftlab.parameters.divided import divide, divided_as, own_part, own_rows, places_of, replace_, rows_as_divided

# transformers reads with several threads ahead of what it fills, so that a whole model of read tensors may wait.
ONE_AT_A_TIME = "HF_DEACTIVATE_ASYNC_LOAD"


@contextmanager
def reading_parts(mesh: DeviceMesh | None) -> Iterator[None]:
    """While the context is open, `from_pretrained` keeps this process's rows; without a mesh nothing is changed."""
    if mesh is None:
        yield
        return
    read, place = PreTrainedModel._load_pretrained_model, core_model_loading.set_param_for_module
    former, unpack = os.environ.get(ONE_AT_A_TIME), GgufHfQuantizer.get_state_dict
    loader: Any = PreTrainedModel
    loading: Any = core_model_loading
    unpacking: Any = GgufHfQuantizer
    unpacking.get_state_dict = _sent(unpack, mesh)
    loader._load_pretrained_model = staticmethod(_divided_first(read, mesh))
    loading.set_param_for_module = _cutting(place, mesh)
    os.environ[ONE_AT_A_TIME] = "1"
    try:
        yield
    finally:
        unpacking.get_state_dict = unpack
        loader._load_pretrained_model, loading.set_param_for_module = staticmethod(read), place
        os.environ.pop(ONE_AT_A_TIME) if former is None else os.environ.update({ONE_AT_A_TIME: former})


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


def _divided_first(read: Callable[..., Any], mesh: DeviceMesh) -> Callable[..., Any]:
    def read_parts(model: Any, state_dict: Any, checkpoint_files: Any, load_config: Any, *more: Any) -> Any:
        if not any(isinstance(one, WeightConverter) for one in load_config.weight_mapping or ()):
            for parameter, places in places_of(model.modules()).items():
                if parameter.dim():
                    replace_(parameter, _empty_part(parameter, mesh), places)
        found = read(model, state_dict, checkpoint_files, load_config, *more)
        _agree(found[0], mesh)
        _make_whole(model, found[0].missing_and_mismatched())
        return found

    return read_parts


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


def _cutting(place: Callable[..., None], mesh: DeviceMesh) -> Callable[..., None]:
    def place_and_cut(model: nn.Module, name: str, value: torch.Tensor, info: Any, quantizer: Any) -> None:
        place(model, name, value, info, quantizer)
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        filled = module._parameters.get(leaf)
        if filled is None or filled.is_meta or filled.dim() == 0:
            return
        part = _own_memory(filled) if isinstance(filled, DTensor) else divide(filled, mesh)
        replace_(filled, part, [(module, leaf)])

    return place_and_cut


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
