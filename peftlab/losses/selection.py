"""Selecting positions before a model's output head, so that logits of other positions are never formed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def find_head(model: nn.Module) -> nn.Module | None:
    """Return the module that turns hidden states into logits over the vocabulary; None where there is none."""
    from peftlab.parameters.trainable import find_base

    base = find_base(model)[1]
    find: Any = getattr(base, "get_output_embeddings", None)
    return find() if find is not None else None


@contextmanager
def selected_before(head: nn.Module | None, positions: torch.Tensor, length: int) -> Iterator[None]:
    """While the context is open, pass only `positions` of its input to `head`; without a head nothing changes.

    The input (rows, length, width) becomes (positions, width). What a model does to logits after its head
    (soft-capping, scaling) works on each position by itself, so it stays right. Learned tokens in front of the
    input (prompt tuning) are dropped.
    """
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(lambda _, inputs: _select(inputs, positions, length))
    try:
        yield
    finally:
        handle.remove()


def _select(inputs: tuple[torch.Tensor, ...], positions: torch.Tensor, length: int) -> tuple[torch.Tensor, ...] | None:
    if not inputs or inputs[0].dim() != 3:
        return None
    hidden, *others = inputs
    return take_positions(hidden, positions, length), *others


def take_positions(values: torch.Tensor, positions: torch.Tensor, length: int) -> torch.Tensor:
    """Return (positions, width) of (rows, at least `length`, width); `positions` count over the last `length`."""
    return values[:, -length:].flatten(0, 1).index_select(0, positions)
