"""ZeRO-3 of DeepSpeed: every process has its own rows and a part of every weight, gradient and state.

Source: arXiv 1910.02054; `deepspeed.initialize`, tried with DeepSpeed 0.19.8. DeepSpeed gathers a module's weights when
it is computed. Each process keeps the same share of every parameter's numbers, in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from peftlab.errors import UsageError
from peftlab.parameters.divided import (
    is_part,
    numbers_of,
    own_numbers,
    packed_as_plain,
    part_of,
    whole_count,
    whole_in_turn,
    whole_shape,
)
from peftlab.parameters.gathering import stop_gathering
from peftlab.parameters.kinds import kept_parameters
from peftlab.parameters.trainable import kept_buffers, trainable_parameters
from peftlab.recipe.schema import Recipe
from peftlab.world.gathered_linear import gathered_linear, plain_linear
from peftlab.world.zero2 import Zero2, import_deepspeed, settings

DIVIDES = "ZeRO-3 divides every weight among processes"
EIGHT_BIT = (
    f"{DIVIDES}, and 8-bit ones have their scales beside them in another form; set method.quantization=nf4 or launch "
    "with DDP"
)
NEW_TOKENS = (
    f"{DIVIDES}, and peft joins new tokens to a table of embeddings that is not gathered then; remove model.add_tokens "
    "or launch with FSDP 2"
)
MIXED = (
    "ZeRO-3 keeps what trains in one buffer, and it has several types ({}); set model.dtype=float32 or launch with "
    "FSDP 2"
)
EXPERTS = (
    "ZeRO-3 gathers a layer on the processes that compute it, and the experts in {} are layers of their own, which a "
    "process may skip; launch with FSDP 2"
)
# Numbers that are gathered ahead on CUDA; DeepSpeed's own default.
AHEAD = 50_000_000
# What DeepSpeed's engine leaves in a module when it is destroyed: functions of that engine, which a new one would use.
LEFT = ("pre_bwd_fn", "post_bwd_fn", "applied_pre_backward_ref_cnt")


class Zero3(Zero2):
    strategy = "zero3"
    divided: ClassVar[bool] = True
    alone: ClassVar[str] = "ZeRO-3 was asked for, but the launch has one process: its device has the whole model"
    title: ClassVar[str] = "ZeRO-3"
    largest_bucket: ClassVar[int] = 50_000_000
    _watching: Sequence[RemovableHandle] = ()

    @classmethod
    def why_not(cls, recipe: Recipe, device: torch.device) -> str:
        refusals = {
            EIGHT_BIT: recipe.method.base_format == "int8",
            NEW_TOKENS: bool(recipe.model.add_tokens),
            f"{DIVIDES}, and {recipe.method.why_undivided} or launch with DDP": recipe.method.why_undivided != "",
        }
        return next((reason for reason, applies in refusals.items() if applies), super().why_not(recipe, device))

    def refuse_model(self, build: Callable[[], nn.Module]) -> None:
        for name, module in build().named_modules():
            if name.endswith("experts") and isinstance(module, nn.ModuleList):
                raise UsageError(EXPERTS.format(name))

    @cached_property
    def mesh(self) -> DeviceMesh:  # type: ignore[override]  # every process has it here
        return init_device_mesh(self.device.type, (self.processes,))

    def prepare(self, model: nn.Module) -> nn.Module:
        """Return `model` on this process's device; `join` gives it to DeepSpeed.

        Raises UsageError for a model that it cannot divide.
        """
        self.refuse_model(lambda: model)
        types = {str(one.dtype).removeprefix("torch.") for one in trainable_parameters(model).values()}
        if len(types) > 1:
            raise UsageError(MIXED.format(", ".join(sorted(types))))
        super().prepare(model)
        stop_gathering(model)
        self._take_parts(model)
        return model

    def _take_parts(self, model: nn.Module) -> None:
        """Give DeepSpeed what is divided by rows: each weight is whole only until it is divided in its way.

        It converts parameters before there is an optimizer of them, as it does for models that are built in its `Init`.
        """
        waiting = whole_in_turn(model)
        if (first := next(waiting, None)) is not None:
            deepspeed = import_deepspeed(self.device)
            counts = [whole_count(one) for one in trainable_parameters(model).values()]
            converter = deepspeed.zero.Init(config_dict_or_path=settings(self._division(counts)))
            converter._convert_to_zero_parameters(one for one, _ in chain([first], waiting))

    def join(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        with packed_as_plain(model):
            super().join(model, optimizer)
        functional.linear = gathered_linear  # type: ignore[assignment]
        self._watching = [
            model.register_forward_pre_hook(lambda *_: _gather_where_read(model, True)),
            model.register_forward_hook(lambda *_: _gather_where_read(model, False), always_call=True),
        ]
        return optimizer

    def _leave_engine(self, model: nn.Module) -> None:
        super()._leave_engine(model)
        for handle in self._watching:
            handle.remove()
        for module in model.modules():
            for name in LEFT:
                module.__dict__.pop(name, None)

    def _division(self, counts: Sequence[int]) -> dict[str, Any]:
        ahead = self.device.type == "cuda"
        return {
            "stage": 3,
            "reduce_bucket_size": min(sum(counts), self.largest_bucket),
            "contiguous_gradients": False,
            "overlap_comm": ahead,
            "sub_group_size": sum(counts) + 1,
            # DeepSpeed's own saves inputs of frozen weights too, and is absent for weights that it is given in parts.
            "memory_efficient_linear": False,
            # No weight remains whole, however small it is or soon it is needed again.
            "stage3_param_persistence_threshold": 0,
            "stage3_max_reuse_distance": 0,
            "stage3_prefetch_bucket_size": AHEAD if ahead else 0,
        }

    def gradients(self, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
        found = []
        for number, parts in self._engine.optimizer.averaged_gradients.items():
            parameters = self._engine.optimizer.fp16_groups[number]
            found += [part[: len(own_numbers(one))] for part, one in zip(parts or (), parameters, strict=False)]
        return found

    def update(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
        super().update(optimizer, scaler)
        # A parameter that a step does not reach would be updated with its last gradient again.
        self._engine.optimizer.grad_partitions_flat_buffer.zero_()

    def capture(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        weights = {name: part_of(parameter) for name, parameter in trainable_parameters(model).items()}
        buffers = kept_buffers(model)
        state = {"weights": weights, "optimizer": self._kept_states(optimizer)}
        return state | ({"buffers": buffers} if buffers else {})

    def fill(self, model: nn.Module, weights: Any) -> None:
        with torch.no_grad():
            for name, parameter in trainable_parameters(model).items():
                own_numbers(parameter).copy_(_numbers(weights[name], parameter))

    def _slices(self, own: torch.Tensor, parameters: list[Any]) -> Sequence[Any]:
        parts = own.split([one.ds_tensor.numel() for one in parameters])
        return [
            {"part": part[: len(own_numbers(one))], "shape": whole_shape(one)}
            for part, one in zip(parts, parameters, strict=True)
        ]

    def _fill_flat(self, flat: torch.Tensor, values: list[Any], parameters: list[Any]) -> None:
        parts = flat.split([one.ds_tensor.numel() for one in parameters])
        for part, value, parameter in zip(parts, values, parameters, strict=True):
            part[: len(own_numbers(parameter))] = _numbers(value, parameter).to(flat.device)

    def _groups(self, optimizer: torch.optim.Optimizer) -> Iterator[tuple[dict[str, Any], torch.Tensor, list]]:
        kept = self._engine.optimizer
        for group, own, parameters in zip(
            optimizer.param_groups, kept.fp32_partitioned_groups_flat, kept.fp16_groups, strict=True
        ):
            yield {name: value for name, value in group.items() if name != "params"}, own, parameters

    @contextmanager
    def whole(self, model: nn.Module, everything: bool) -> Iterator[None]:
        from deepspeed.runtime.zero import GatheredParameters

        self._engine.empty_partition_cache()
        kept = kept_parameters(model)
        with GatheredParameters([one for one in model.parameters() if everything or one in kept]):
            yield

    def engine_tensors(self) -> dict[str, list[torch.Tensor]]:
        """Return this process's copy of what trains, and the buffer for its part of the gradients."""
        kept = self._engine.optimizer
        return {"trainable_weights": kept.fp32_partitioned_groups_flat, "gradients": [kept.grad_partitions_flat_buffer]}

    def close(self) -> None:
        if functional.linear is gathered_linear:
            from deepspeed.runtime.zero import parameter_offload

            functional.linear = plain_linear
            parameter_offload.FWD_MODULE_STACK.clear()
        super().close()


def _gather_where_read(model: nn.Module, on: bool) -> None:
    """Let DeepSpeed gather a weight that a module reads of another one, as DoRA's norms and tied heads do, or not."""
    for module in model.modules():
        module._parameters._in_forward = on  # type: ignore[attr-defined]  # DeepSpeed's own kind of dict


def _numbers(value: Any, parameter: nn.Parameter) -> torch.Tensor:
    """Return this process's numbers of a parameter from a checkpoint's value: its part, or a whole tensor."""
    return value["part"] if is_part(value) else numbers_of(parameter, value)
