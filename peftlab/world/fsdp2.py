"""Fully sharded data parallel: every process has its own rows and a part of every weight, gradient and state.

Source: `fully_shard` of torch, pytorch.org/docs/stable/distributed.fsdp.fully_shard.html. Accelerate starts the
processes; it is not asked to divide the model, since it would not do so on the CPU.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from peftlab.errors import UsageError
from peftlab.parameters.divided import (
    divided_as,
    is_part,
    move_,
    own_part,
    packed_as_plain,
    part_of,
    places_of,
    replace_,
    whole,
)
from peftlab.parameters.gathering import stop_gathering
from peftlab.parameters.kinds import kept_parameters, layer_lists
from peftlab.parameters.trainable import find_base
from peftlab.recipe.schema import Recipe
from peftlab.world.ddp import Ddp
from peftlab.world.dtypes import resolve_types
from peftlab.world.request import is_on

# What cannot work, and what to do instead.
DIVIDES = "FSDP 2 divides every weight among processes"
EIGHT_BIT = (
    f"{DIVIDES}, and 8-bit ones have their scales beside them in another form; set method.quantization=nf4 or launch "
    "with DDP"
)
OWN_STATES = f"{DIVIDES}, and bitsandbytes' optimisers take whole ones; set training.optimizer=adamw or launch with DDP"
SCALED = f"{DIVIDES}, and float16's gradient scaler is untried there; set training.precision=bfloat16"
# peft 0.21: `PeftModelForSequenceClassification._prefix_tuning_forward`.
APART = (
    f"{DIVIDES}, and gathers some when the whole model is called, of which a prefix in a {{}} classifier calls parts "
    "by themselves; set method.type=lora or launch with DDP"
)
CHECKPOINTED = (
    "fsdp_activation_checkpointing is not read; set it to false and training.gradient_checkpointing=true instead"
)


class Fsdp2(Ddp):
    strategy = "fsdp2"
    divided: ClassVar[bool] = True
    alone: ClassVar[str] = "FSDP 2 was asked for, but the launch has one process: its device has the whole model"
    # transformers 5.23 would leave what no checkpoint has empty in all but one process, for accelerate's FSDP to fill.
    dropped_variables: ClassVar[tuple[str, ...]] = ("FSDP_CPU_RAM_EFFICIENT_LOADING",)
    hidden_variables: ClassVar[tuple[str, ...]] = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_PARALLELISM_CONFIG")

    @classmethod
    def why_not(cls, recipe: Recipe, device: torch.device) -> str:
        types = resolve_types(recipe.model.dtype, recipe.training.precision, device)
        refusals = {
            EIGHT_BIT: recipe.method.base_format == "int8",
            f"{DIVIDES}, and {recipe.method.why_undivided} or launch with DDP": recipe.method.why_undivided != "",
            OWN_STATES: recipe.training.optimizer.needs_cuda,
            SCALED: types.computation == torch.float16,
            CHECKPOINTED: is_on(os.environ, "FSDP_ACTIVATION_CHECKPOINTING"),
        }
        return next((reason for reason, applies in refusals.items() if applies), super().why_not(recipe, device))

    @cached_property
    def mesh(self) -> DeviceMesh:  # type: ignore[override]  # every process has it here
        return init_device_mesh(self.device.type, (self.processes,))

    def prepare(self, model: nn.Module) -> nn.Module:
        """Divide a model's weights, layer by layer, in place, and return it.

        Raises UsageError for a prefix in a model of which peft would call parts by themselves.
        """
        move_(model, self.device)
        plain: Any = find_base(model)[1]
        if hasattr(model, "prompt_encoder") and "past_key_values" not in inspect.signature(plain.forward).parameters:
            raise UsageError(APART.format(plain.config.model_type))
        stop_gathering(model)
        options: dict[str, Any] = {
            "mesh": self.mesh,
            # Of the outermost part too: otherwise its weights would be whole, and copies, until the next step.
            "reshard_after_forward": True,
            "offload_policy": self._offload(),
        }
        layers = (layer for path in layer_lists(plain) for layer in plain.get_submodule(path).children())
        with packed_as_plain(model), _kept_parts(model, self._offloaded_to):
            for module in (*layers, plain, *_beside(model, plain)):
                fully_shard(module, **options)
        if plain.config.is_encoder_decoder:
            _gather_alone(plain.get_encoder(), plain)
        return model

    @property
    def _offloaded_to(self) -> torch.device | None:
        """Where weights are kept, if that is not where they are computed."""
        return torch.device("cpu") if self.device.type != "cpu" and is_on(os.environ, "FSDP_OFFLOAD_PARAMS") else None

    def _offload(self) -> OffloadPolicy:
        if is_on(os.environ, "FSDP_OFFLOAD_PARAMS"):
            return CPUOffloadPolicy(pin_memory=self.device.type == "cuda")
        return OffloadPolicy()

    def accumulating(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return a context that changes nothing: gradients are exchanged after every pass, so that none is whole."""
        return nullcontext()

    def capture(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return _parts(super().capture(model, optimizer))

    def set_states(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        moments = {
            number: {name: _like(value, parameters[number]) for name, value in kept.items()}
            for number, kept in state["state"].items()
        }
        super().set_states(optimizer, {**state, "state": moments})

    @contextmanager
    def whole(self, model: nn.Module, everything: bool) -> Iterator[None]:
        places = [(module, name, one) for module in model.modules() for name, one in module._parameters.items()]
        divided = [(module, name, one) for module, name, one in places if one is not None]
        found: dict[nn.Parameter, nn.Parameter] = {}
        kept = kept_parameters(model)
        try:
            for module, name, parameter in divided:
                if everything or parameter in kept:
                    if parameter not in found:
                        found[parameter] = nn.Parameter(whole(parameter.detach()), parameter.requires_grad)
                    module._parameters[name] = found[parameter]
            yield
        finally:
            for module, name, parameter in divided:
                module._parameters[name] = parameter


@contextmanager
def _kept_parts(model: nn.Module, device: torch.device | None) -> Iterator[None]:
    """While the context is open, weights that are divided already are whole ones without memory, for `fully_shard`.

    It divides by rows too: at its end the parts are where it has put its own, moved to `device` if there is one.
    """
    kept = [(places, one) for one, places in places_of(model.modules()).items() if isinstance(one, DTensor)]
    for places, part in kept:
        replace_(part, torch.empty(part.shape, dtype=part.dtype, device="meta"), places)
    yield
    for places, part in kept:
        replace_(part, part.detach() if device is None else _on(part, device), places)


def _on(part: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a divided tensor whose own part is on another device than those of its mesh."""
    moved = torch.empty_like(part.detach(), device=device)
    own_part(moved).copy_(own_part(part.detach()))
    return moved


def _beside(model: nn.Module, plain: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules that a method keeps beside the plain model and that have parameters of their own."""
    inside = set(plain.modules())
    around = {module for module in model.modules() if plain in module.modules()}
    for module in model.modules():
        if module not in inside and module not in around and any(True for _ in module.parameters(recurse=False)):
            yield module


def _gather_alone(encoder: Any, plain: Any) -> None:
    """Let a pass of the encoder alone, with which generation begins, gather what is divided beside the layers."""
    begun: list[bool] = []

    def begin(*_: Any) -> None:
        begun.append(isinstance(encoder.get_input_embeddings().weight, DTensor))
        if begun[-1]:
            plain.unshard()

    def end(*_: Any) -> None:
        if begun.pop():
            plain.reshard()

    encoder.register_forward_pre_hook(begin)
    encoder.register_forward_hook(end, always_call=True)


def _parts(value: Any) -> Any:
    """Return a tree with this process's parts of divided tensors."""
    if isinstance(value, dict):
        return {key: _parts(item) for key, item in value.items()}
    return part_of(value) if isinstance(value, torch.Tensor) else value


def _like(value: Any, parameter: torch.Tensor) -> Any:
    """Return an optimiser's tensor of a parameter, divided as the parameter is; numbers and counts as they are."""
    if is_part(value) or isinstance(value, torch.Tensor) and value.shape == parameter.shape:
        return divided_as(value, parameter)
    return value
