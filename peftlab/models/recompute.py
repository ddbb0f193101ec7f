"""Recomputing a model's activations in the backward pass, in place of storing them."""

from __future__ import annotations

from typing import Any

from peftlab.errors import MethodError


def recompute_activations(model: Any) -> None:
    """Switch on gradient checkpointing in `model`, a transformers model or peft's around one.

    Raises MethodError for a model that does not support it.
    """
    try:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except ValueError as error:
        raise MethodError(f"training.gradient_checkpointing: {error}") from error
