"""Tensor parallel: every process has the same rows and a part of each dense layer that transformers' plan names.

Source: arXiv 1909.08053; `tp_plan` of a transformers model and `apply_tensor_parallelism`, tried with transformers 5.23
and peft 0.21. A layer is divided by its outputs (`colwise`) or by its inputs (`rowwise`); of a LoRA beside it B is
divided in the first case and A in the second. Everything else is whole and equal on every process.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from peftlab.errors import UsageError
from peftlab.parameters.divided import move_, own_part, replace_, whole, whole_in_turn
from peftlab.parameters.gathering import stop_gathering
from peftlab.parameters.trainable import canonical_in, find_base
from peftlab.recipe.schema import Recipe
from peftlab.world.base import Item
from peftlab.world.dtypes import resolve_types
from peftlab.world.fsdp2 import Fsdp2
from peftlab.world.request import TENSOR_SIZE as SIZE
from peftlab.world.request import count, undivided_heads

DIVIDES = "tensor parallel divides dense layers among processes"
PACKED = f"{DIVIDES}, and packed weights cannot be cut by inputs; set method.type=lora or launch with FSDP 2"
NORMS = f"{DIVIDES}, and DoRA reads the norm of each whole weight; set method.dora=false or launch with FSDP 2"
INSIDE = f"{DIVIDES}, and a prefix has the keys of all heads; launch with FSDP 2"
OWN_STATES = f"{DIVIDES}, and bitsandbytes' optimisers take whole ones; set training.optimizer=adamw or launch with DDP"
SCALED = f"{DIVIDES}, and float16's gradient scaler is untried there; set training.precision=bfloat16"
AVERAGED = f"{DIVIDES}, and training.average.ema is untried there; remove it or launch with DDP"
NO_PLAN = "transformers has no tensor parallel plan for {} models that peftlab can use; launch with FSDP 2"
MIXED = "{} is {}, and the launch has {} processes; set it to that number: tensor parallel is not mixed with others"
UNEVEN = "tensor parallel divides layers evenly, and the {} {} of {} cannot be divided by {} processes"
# Of the row that shows what is summed.
TOKENS = 8
# The parts of a layer with LoRA that are divided with it, by the style of its plan.
STYLES = {"colwise": "lora_B", "rowwise": "lora_A"}
# Styles of layers whose inputs and outputs are whole on every process: they stay whole here, as the head does.
WHOLE = {"colwise_gather_output", "rowwise_split_input", "embedding_rowwise"}
# That of norms within heads: each process sees some heads only, so that the gradients of such a norm would be parts.
WITHIN_HEADS = "replicated_with_grad_allreduce"


class Tensor(Fsdp2):
    strategy = "tensor"
    whole_head: ClassVar[bool] = True
    shares_rows: ClassVar[bool] = True
    alone: ClassVar[str] = "tensor parallel was asked for, but the launch has one process: its device has all layers"

    @classmethod
    def why_not(cls, recipe: Recipe, device: torch.device) -> str:
        types = resolve_types(recipe.model.dtype, recipe.training.precision, device)
        refusals = {
            PACKED: recipe.method.base_format != "plain",
            INSIDE: recipe.method.virtual_tokens > 0,
            NORMS: getattr(recipe.method, "dora", False),
            OWN_STATES: recipe.training.optimizer.needs_cuda,
            SCALED: types.computation == torch.float16,
            AVERAGED: recipe.training.average.ema is not None,
        }
        return next((reason for reason, applies in refusals.items() if applies), super().why_not(recipe, device))

    @property
    def gradient_factor(self) -> float:
        return 1.0

    def refuse_model(self, build: Callable[[], nn.Module]) -> None:
        if (size := count(os.environ, SIZE)) != self.processes:
            raise UsageError(MIXED.format(SIZE, size, self.processes))
        _plan_for(build(), self.processes)

    def prepare(self, model: nn.Module) -> nn.Module:
        """Divide the layers of a model's plan, in place, and return it. Raises UsageError without such a plan."""
        from transformers.distributed.tensor_parallel import apply_tensor_parallelism

        self.refuse_model(lambda: find_base(model)[1])
        move_(model, self.device)
        # Another than that of loading: PEFT takes what is divided in a mesh of this name for tensor parallel.
        mesh = init_device_mesh(self.device.type, (self.processes,), mesh_dim_names=("tp",))
        plain: Any = find_base(model)[1]
        plan = _plan_for(plain, self.processes)
        stop_gathering(model)
        names = {module: name for name, module in plain.named_modules()}
        for _, places in whole_in_turn(model):  # what the plan divides, it divides before the next one is whole
            own = {f"{names[module]}.{name}": plan.pop(f"{names[module]}.{name}", "") for module, name in places}
            apply_tensor_parallelism(plain, mesh, {name: style for name, style in own.items() if style})
        apply_tensor_parallelism(plain, mesh, plan)
        return model

    def join(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        for group in optimizer.param_groups:  # functions of many tensors take no divided ones beside whole ones
            group["fused"], group["foreach"] = False, False
        return optimizer

    def gradients(self, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
        return [own_part(gradient) for gradient in super().gradients(optimizer)]

    def clip(self, optimizer: torch.optim.Optimizer, limit: float, foreach: bool | None) -> torch.Tensor:
        gradients = super().gradients(optimizer)
        norms = [whole(torch.linalg.vector_norm(gradient, dtype=torch.float32)) for gradient in gradients]
        norm = torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros((), device=self.device)
        for own in self.gradients(optimizer):
            own.mul_(torch.clamp(limit / (norm + 1e-6), max=1.0))
        return norm

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def gather_rows(self, items: list[Item]) -> list[Item]:
        return items


@torch.enable_grad()
def count_sums(model: nn.Module) -> tuple[int, int] | None:
    """Return how many numbers of each token are summed over processes in a forward and in a backward pass.

    None where a pass without weights cannot be made. `model` is on the meta device. A layer that is divided by inputs
    has its output summed; one that is divided by outputs the gradient of its input, where that has one.
    """
    plain: Any = find_base(model)[1]
    plan, modules = _plan_of(plain), dict(plain.named_modules())
    sums = {"rowwise": 0, "colwise": 0}

    def note(style: str, given: torch.Tensor, made: torch.Tensor) -> None:
        if style == "rowwise":
            sums[style] += made.numel()
        elif given.requires_grad:
            sums[style] += given.numel()

    handles = [
        modules[name].register_forward_hook(lambda _, given, made, style=style: note(style, given[0], made))
        for name, style in plan.items()
        if name in modules
    ]
    try:
        model(input_ids=torch.ones(1, TOKENS, dtype=torch.int64, device="meta"))
    except Exception:  # a model that reads values
        return None
    finally:
        for handle in handles:
            handle.remove()
    return sums["rowwise"] // TOKENS, sums["colwise"] // TOKENS


def _plan_for(plain: Any, processes: int) -> dict[str, str]:
    """Return the style of each layer and weight that is divided. Raises UsageError where they cannot be."""
    if reason := undivided_heads(plain.config.get_text_config().to_dict(), processes):
        raise UsageError(reason)
    plan = _plan_of(plain)
    _refuse_uneven(plain, plan, processes)
    return plan


def _refuse_uneven(plain: nn.Module, plan: dict[str, str], processes: int) -> None:
    """Raise UsageError for a layer whose parts would differ in size.

    Processes would then draw random numbers for dropout in different counts, and what is whole would differ among them.
    """
    sides, modules = {"colwise": "out_features", "rowwise": "in_features"}, dict(plain.named_modules())
    for name, style in plan.items():
        side = sides[style]
        if name in modules and (size := getattr(modules[name], side)) % processes:
            raise UsageError(f"{UNEVEN.format(size, side, name, processes)}; launch with FSDP 2")


def keep_own_part_(model: nn.Module, processes: int) -> frozenset[str]:
    """Give the layers of a model of the meta device the sizes that one of several processes computes, in place.

    Return the canonical names of the parameters that are smaller now. Raises UsageError for a model that cannot be
    divided so.
    """
    plain: Any = find_base(model)[1]
    plan, smaller = _plan_for(plain, processes), set[str]()
    for name, parameter in list(plain.named_parameters()):
        if (style := plan.get(name)) is None or style == "rowwise" and name.endswith(".bias"):
            continue
        side = parameter.dim() - 1 if style == "rowwise" else max(parameter.dim() - 2, 0)
        own = parameter.detach().narrow(side, 0, parameter.shape[side] // processes)
        path, _, leaf = name.rpartition(".")
        replace_(parameter, torch.empty_like(own), [(plain.get_submodule(path), leaf)])
        smaller.add(name)
    canonical = canonical_in(plain)
    return frozenset(canonical(name) for name in smaller)


def _plan_of(plain: Any) -> dict[str, str]:
    """Return the style of each layer and weight that is divided. Raises UsageError if nothing can be."""
    wanted, modules = dict(getattr(plain, "tp_plan", None) or {}), dict(plain.named_modules())
    found: dict[str, str] = {}
    for name, module in modules.items():
        style = wanted.get(re.sub(r"\.\d+(?=\.|$)", ".*", name))
        frozen = not any(one.requires_grad for one in module.parameters())
        if style is None or style in WHOLE or style == WITHIN_HEADS and frozen:
            continue
        if style not in STYLES:
            raise UsageError(NO_PLAN.format(plain.config.model_type))
        parts = [f"{name}.base_layer" if f"{name}.base_layer" in modules else name]
        beside = getattr(module, STYLES[style], None)
        parts += [f"{name}.{STYLES[style]}.{key}" for key in beside] if isinstance(beside, nn.ModuleDict) else []
        for part in parts:
            found[part] = style
            found |= {f"{part}.{one}": style for one, _ in modules[part].named_parameters(recurse=False)}
    if not found:
        raise UsageError(NO_PLAN.format(plain.config.model_type))
    return found
