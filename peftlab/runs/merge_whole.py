"""Merging a model that is built as a whole, in memory, and what became of each of its tensors."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

from peftlab.errors import StorageError, listed
from peftlab.methods import Method
from peftlab.parameters.trainable import is_quantized, named_parameters


def write_whole(
    trained: nn.Module, method: Method, plain: nn.Module | None, folder: Path, dtype: torch.dtype
) -> dict[str, int]:
    """Merge a trained model, into the base `plain` where there is one, and write it as a transformers folder.

    Returns how many tensors were merged, trained, copied, unpacked or added. Raises StorageError if one is lost.
    """
    merged = cast(PreTrainedModel, method.merge(trained, plain))
    counts = _account(trained, merged, method)
    # A run that recomputed activations has the cache off, which no use of the result should inherit.
    merged.config.use_cache = True
    _cast(merged, dtype).save_pretrained(folder)
    return counts


def _account(trained: nn.Module, merged: nn.Module, method: Method) -> dict[str, int]:
    """Return how many tensors of `merged` became what. Raises StorageError if a tensor of the run is lost."""
    before, after = named_parameters(trained), named_parameters(merged)
    updated = method.updated_weights(before)
    kinds = {name: _kind(before.get(name), tensor, name in updated) for name, tensor in after.items()}
    lost = {name for name in before if before[name].requires_grad and not method.merges_away(name)} - kinds.keys()
    lost |= {name for name in updated if kinds.get(name) != "merged"}
    if lost:
        raise StorageError(f"merging lost what was trained of {listed(sorted(lost)[:3])}; nothing was written")
    return {kind: list(kinds.values()).count(kind) for kind in dict.fromkeys(kinds.values())}


def _kind(before: nn.Parameter | None, after: nn.Parameter, updated: bool) -> str:
    if before is None:
        return "added"
    if before.requires_grad:
        return "trained"
    if is_quantized(before):
        return "merged" if updated else "unpacked"
    return "copied" if torch.equal(before, after) else "merged"


def _cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    model.to(dtype)  # type: ignore[arg-type]  # transformers wraps `to` so that mypy takes `dtype` for `self`
    model.config.dtype = dtype
    return model
