"""Starting values of a prefix: the keys and values of real tokens in every layer."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn


@torch.no_grad()
def read_keys_and_values(model: nn.Module, ids: torch.Tensor, projections: list[str]) -> torch.Tensor:
    """Return the attention's keys and values of the tokens `ids` (P,): (P, layers · 2 · key width), float32.

    Each layer's keys come before its values. Decoders give them in their cache, with positions applied; for
    encoders, which have no cache, `projections` names the key and value projections in that order.
    """
    outputs: list[torch.Tensor] = []
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda module, args, output: outputs.append(output))
        for name in projections
    ]
    was_training = model.training
    body = getattr(model.eval(), "base_model", model)
    device = next(model.parameters()).device
    # MPT's configuration says that it keeps none.
    more: dict[str, Any] = {"use_cache": True} if "use_cache" in inspect.signature(body.forward).parameters else {}
    try:
        cache = getattr(body(input_ids=ids[None].to(device), **more), "past_key_values", None)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    if cache is None:
        parts = [output[0] for output in outputs]
    else:
        # (1, heads, P, head size) → (P, heads · head size)
        parts = [part[0].transpose(0, 1).flatten(1) for layer in cache.layers for part in (layer.keys, layer.values)]
    return torch.cat(parts, dim=1).float()
