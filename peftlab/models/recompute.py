"""Recomputing layers in the backward pass, in place of storing their activations: which of them, and how it is set.

The layers that are recomputed are the first that gradients reach. The backward pass comes to them last: when one is
computed again, the layers above it have released what they kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from peftlab.errors import MethodError
from peftlab.parameters.layers import all_layers, reached_layers
from peftlab.parameters.trainable import find_base
from peftlab.recipe.checkpointing import OFFLOAD, Checkpointing, asks_for_checkpointing
from peftlab.reports import CheckpointingReport

FIELD = "training.gradient_checkpointing"
FLAG, FUNCTION = "gradient_checkpointing", "_gradient_checkpointing_func"

Keep = Callable[[], AbstractContextManager]


def on_host() -> AbstractContextManager:
    """Return a context in which what is saved for the backward pass waits in the host's pinned memory."""
    return torch.autograd.graph.save_on_cpu(pin_memory=True)


def recompute_activations(model: Any, wanted: Checkpointing = True, keep: Keep = on_host) -> CheckpointingReport:
    """Let `model`, a transformers model or peft's around one, recompute as many layers as are wanted, and no others.

    Layers below the lowest trainable one have no graph, and are not computed again: transformers 5 lets the
    embeddings' output require gradients, which only the reentrant kind of checkpoint needs. With `offload`, the inputs
    of all layers are saved as `keep` does. Raises MethodError for a model that does not support it.
    """
    if not asks_for_checkpointing(wanted):
        _set_flags(model, False)
        return CheckpointingReport(layers=0, of=0)
    layers = reached_layers(model)
    count = count_wanted(wanted, layers)
    try:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except ValueError as error:
        raise MethodError(f"{FIELD}: {error}") from error
    base: Any = find_base(model)[1]
    base.disable_input_require_grads()
    chosen = {id(layer) for layer in layers[:count]}
    for layer in all_layers(model) if layers else []:
        if id(layer) not in chosen:
            _set_flags(layer, False)
    if wanted == OFFLOAD:
        _set_function(model, partial(_checkpoint, keep))
    return CheckpointingReport(layers=count, of=len(layers), on_host=wanted == OFFLOAD)


def count_wanted(wanted: Checkpointing, layers: Sequence[nn.Module]) -> int:
    """Return how many of the layers that gradients reach are recomputed. Raises MethodError for too many."""
    if wanted is True or wanted == OFFLOAD or not isinstance(wanted, int):
        return max(len(layers), 1)  # a model whose layers are in no list has its own way
    if wanted > len(layers):
        raise MethodError(f"{FIELD}={wanted}: gradients reach {len(layers)} layers of this model; set it to true")
    if wanted < len(layers) and not are_separate(layers):
        raise MethodError(f"{FIELD}={wanted}: this model recomputes all of its layers or none; set it to true or false")
    return wanted


def are_separate(layers: Sequence[nn.Module]) -> bool:
    """Return whether some of the layers can be recomputed, and others not."""
    return bool(layers) and all(isinstance(layer, GradientCheckpointingLayer) for layer in layers)


def is_recomputed(layer: nn.Module) -> bool:
    """Return whether a layer, or a part of it, is computed again in the backward pass."""
    return any(getattr(module, FLAG, False) for module in layer.modules())


def _set_flags(model: nn.Module, value: bool) -> None:
    for module in model.modules():
        if getattr(module, FLAG, value) != value:
            setattr(module, FLAG, value)


def _set_function(model: nn.Module, function: Callable[..., Any]) -> None:
    for module in model.modules():
        if hasattr(module, FLAG):
            vars(module)[FUNCTION] = function


def _checkpoint(keep: Keep, function: Callable[..., Any], *inputs: Any) -> Any:
    """Return the function's result; it is computed again in the backward pass, from inputs saved as `keep` does."""
    with keep():
        return checkpoint(function, *inputs, use_reentrant=False)
