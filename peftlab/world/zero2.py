"""ZeRO-2 of DeepSpeed: every process has the whole model and its own rows, and a part of gradients and states.

Source: arXiv 1910.02054; `deepspeed.initialize`, tried with DeepSpeed 0.19.8. DeepSpeed reduces the gradients of a
backward pass into each process's part, updates that part with torch's own optimizer, and gathers the weights.
Clipping, the norm, and what a checkpoint contains are peftlab's, so that they are those of one process.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import distributed, nn

from peftlab.parameters.divided import is_part, move_, whole_count, whole_shape
from peftlab.parameters.trainable import trainable_parameters
from peftlab.recipe.schema import Recipe
from peftlab.world.base import OWN_SETTINGS
from peftlab.world.ddp import Ddp
from peftlab.world.dtypes import resolve_types

DIVIDES = "the optimizer's states among processes"
OWN_STATES = f"{DIVIDES}, whatever tensors they belong to; set training.optimizer=adamw or sgd, or launch with DDP"
SCALED = f"{DIVIDES}, and float16's gradient scaler is untried there; set training.precision=bfloat16"
AVERAGED = f"{DIVIDES}, and with them training.average.ema, which evaluations need whole; remove it or launch with DDP"
# Settings of a launcher that change what is computed where, and that are not read.
UNREAD = {
    "ACCELERATE_DEEPSPEED_CONFIG_FILE": "deepspeed_config_file",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "offload_optimizer_device",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "offload_param_device",
}


class Zero2(Ddp):
    strategy = "zero2"
    alone: ClassVar[str] = "ZeRO-2 was asked for, but the launch has one process: its device has all states"
    hidden_variables: ClassVar[tuple[str, ...]] = ("ACCELERATE_USE_DEEPSPEED",)
    package: ClassVar[str] = "deepspeed"
    title: ClassVar[str] = "ZeRO-2"
    largest_bucket: ClassVar[int] = 500_000_000
    """Numbers in the buffer in which gradients are reduced, at most; here DeepSpeed's own default."""
    _engine: Any = None

    @classmethod
    def why_not(cls, recipe: Recipe, device: torch.device) -> str:
        types = resolve_types(recipe.model.dtype, recipe.training.precision, device)
        divides = f"{cls.title} divides"
        refusals = {
            f"{divides} {OWN_STATES}": not recipe.training.optimizer.elementwise,
            f"{divides} {SCALED}": types.computation == torch.float16,
            f"{divides} {AVERAGED}": recipe.training.average.ema is not None,
        }
        for variable, setting in UNREAD.items():
            refusals[f"{setting} is not read; remove it from the launcher's configuration"] = os.environ.get(
                variable, "none"
            ) not in ("none", "")
        return next((reason for reason, applies in refusals.items() if applies), super().why_not(recipe, device))

    def prepare(self, model: nn.Module) -> nn.Module:
        """Return `model` on this process's device; `join` gives it to DeepSpeed."""
        move_(model, self.device)
        return model

    def join(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Return the optimizer, of which DeepSpeed from now on divides what it updates and keeps.

        The model is called as it is, not through DeepSpeed's engine: that would switch off the autocast around it, and
        watch its outputs, of which a loss without logits uses none.
        """
        deepspeed = import_deepspeed(self.device)
        self._leave_engine(model)
        for group in optimizer.param_groups:
            group["fused"] = None  # it would skip bad steps by a flag that DeepSpeed does not pass on
        counts = [whole_count(parameter) for group in optimizer.param_groups for parameter in group["params"]]
        self._engine = deepspeed.initialize(model=model, optimizer=optimizer, config=settings(self._division(counts)))[
            0
        ]
        # Its hooks on the model time forward passes, and would keep an engine that is replaced, with all its buffers.
        self._engine.module_forward_pre_hook.remove()
        self._engine.module_forward_post_hook.remove()
        return optimizer

    def _leave_engine(self, model: nn.Module) -> None:
        """Remove what an engine that is replaced has left in the model."""
        if self._engine is not None:
            self._engine.destroy()
            # Python may collect it after the next is made, and its destructor would undo that one's links to gradients.
            self._engine.destroy = lambda: None
            self._engine = None

    def close(self) -> None:
        if self._engine is not None:
            self._leave_engine(self._engine.module)
        super().close()

    def _division(self, counts: Sequence[int]) -> dict[str, Any]:
        """Return DeepSpeed's settings of what is divided, for trained parameters with so many numbers each."""
        bucket = min(sum(counts), self.largest_bucket)
        return {
            "stage": 2,
            "compute_grad_norm": False,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": 2 * bucket,
            "round_robin_gradients": False,
            "parameter_alignment": False,
        }

    def backward(self, loss: torch.Tensor) -> None:
        self._engine.optimizer.clear_backward_seen_flag()
        self._engine.optimizer.enter_backward()
        self._engine.backward(loss, scale_wrt_gas=False)

    @contextmanager
    def accumulating(self, model: nn.Module) -> Iterator[None]:
        self._engine.set_gradient_accumulation_boundary(False)
        try:
            yield
        finally:
            self._engine.set_gradient_accumulation_boundary(True)

    def gradients(self, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
        parts = self._engine.optimizer.averaged_gradients.values()
        return [gradient for part in parts for gradient in part or ()]

    def gradient_of(self, parameter: torch.Tensor) -> torch.Tensor | None:
        from deepspeed.utils import safe_get_full_grad

        return safe_get_full_grad(parameter)

    @torch.no_grad()
    def clip(self, optimizer: torch.optim.Optimizer, limit: float, foreach: bool | None) -> torch.Tensor:
        own = self.gradients(optimizer)
        squared = torch.nn.utils.get_total_norm(own, foreach=foreach).double().square().to(self.device)
        norm = self.sum(squared).sqrt().float()
        torch._foreach_mul_(own, torch.clamp(limit / (norm + 1e-6), max=1.0))  # as torch.nn.utils.clip_grad_norm_ does
        return norm

    def update(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
        self._engine.step()

    def capture(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return super().capture(model, optimizer) | {"optimizer": self._kept_states(optimizer)}

    def _kept_states(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the state of an optimizer of whole parameters; the tensors as `_slices` returns them."""
        states: dict[int, dict[str, Any]] = {}
        groups = []
        for saved, own, parameters in self._groups(optimizer):
            numbers = list(range(len(states), len(states) + len(parameters)))
            groups.append(saved | {"params": numbers})
            states |= {number: {} for number in numbers}
            for name, value in optimizer.state.get(own, {}).items():
                divided = isinstance(value, torch.Tensor) and value.shape == own.shape
                values = self._slices(value, parameters) if divided else [value] * len(parameters)
                for number, one in zip(numbers, values, strict=True):
                    states[number][name] = one if divided else _copied(one)
        return {"state": {number: state for number, state in states.items() if state}, "param_groups": groups}

    def _slices(self, own: torch.Tensor, parameters: list[nn.Parameter]) -> Sequence[Any]:
        """Return on the main process each parameter's part of the whole of what processes have of a flat tensor."""
        parts = [torch.empty_like(own) for _ in range(self.processes)] if self.is_main else None
        distributed.gather(own.contiguous(), parts)
        if parts is None:
            return [None] * len(parameters)
        flat = torch.cat([part.cpu() for part in parts])
        sizes = [parameter.numel() for parameter in parameters]
        whole = flat[: sum(sizes)].split(sizes)
        return [one.view(parameter.shape) for one, parameter in zip(whole, parameters, strict=True)]

    @torch.no_grad()
    def set_states(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Set this process's parts of weights and states to those of a whole optimizer's state."""
        self._engine.optimizer.refresh_fp32_params()
        number = 0
        for (_, own, parameters), saved, group in zip(
            self._groups(optimizer), state["param_groups"], optimizer.param_groups, strict=True
        ):
            group.update({name: value for name, value in saved.items() if name not in ("params", *OWN_SETTINGS)})
            states = [state["state"].get(number + index, {}) for index in range(len(parameters))]
            number += len(parameters)
            kept = optimizer.state[own]
            kept.clear()
            for name, value in states[0].items():
                if not is_part(value) and (
                    not isinstance(value, torch.Tensor) or value.shape != whole_shape(parameters[0])
                ):
                    kept[name] = _copied(value)
                    continue
                kept[name] = torch.zeros_like(own)
                self._fill_flat(kept[name], [one[name] for one in states], parameters)

    def _fill_flat(self, flat: torch.Tensor, values: list[Any], parameters: list[nn.Parameter]) -> None:
        """Set this process's part of a flat tensor to its part of values, one of each parameter."""
        start = self.process * flat.numel()
        part = torch.cat([value.flatten() for value in values])[start : start + flat.numel()]
        flat[: part.numel()] = part.to(flat.device)

    def _groups(self, optimizer: torch.optim.Optimizer) -> Iterator[tuple[dict[str, Any], torch.Tensor, list]]:
        """Yield each group's settings, this process's part of its flat parameters, and the parameters themselves."""
        for group, parameters in zip(optimizer.param_groups, self._engine.optimizer.bit16_groups, strict=True):
            settings = {name: value for name, value in group.items() if name != "params"}
            yield settings, group["params"][0], parameters

    @contextmanager
    def whole(self, model: nn.Module, everything: bool) -> Iterator[None]:
        """While the context is open, what trains has memory of its own, not parts of one buffer."""
        kept = {parameter: parameter.data for parameter in trainable_parameters(model).values()}
        for parameter in kept:
            parameter.data = parameter.data.clone()
        yield
        for parameter, data in kept.items():
            parameter.data = data


def import_deepspeed(device: torch.device) -> Any:
    """Return the library, quiet, for a device's type."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if device.type == "cpu":
        # Shared memory in place of gloo: an extension that it would compile for minutes, on every machine anew.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def settings(division: dict[str, Any]) -> dict[str, Any]:
    """Return DeepSpeed's settings, with those of what is divided: no scaling, clipping or accumulation of its own."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": division,
    }


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value
