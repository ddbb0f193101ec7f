"""Recomputing a model's activations in the backward pass, in place of storing them."""

from __future__ import annotations

from typing import Any

from peftlab.errors import MethodError
from peftlab.parameters.trainable import find_base


def recompute_activations(model: Any) -> None:
    """Switch on gradient checkpointing in `model`, a transformers model or peft's around one.

    Layers below the lowest trainable one have no graph, and are not computed again: transformers 5 lets the
    embeddings' output require gradients, which only the reentrant kind of checkpoint needs. Raises MethodError for a
    model that does not support it.
    """
    try:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except ValueError as error:
        raise MethodError(f"training.gradient_checkpointing: {error}") from error
    base: Any = find_base(model)[1]
    base.disable_input_require_grads()
