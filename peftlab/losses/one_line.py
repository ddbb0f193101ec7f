"""Rows of a batch as one line below a model's head: the head gets rows, as it does without packing.

A head of whole rows (of a classifier) takes one token of each line of its input, or their mean, so that the model's
input stays padded. Between the body's input and its last layer the rows lie end to end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from peftlab.data.token_rows import LINE, LINE_POSITIONS
from peftlab.losses.base import Batch
from peftlab.parameters.layers import all_layers
from peftlab.parameters.trainable import find_body

_ends: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()


@contextmanager
def one_line_below_head(model: nn.Module, batch: Batch) -> Iterator[None]:
    """While the context is open, the layers of `model` get the batch's rows as one line, (1, tokens).

    Nothing changes for a batch without a line. The attention must keep rows apart by itself.
    """
    if LINE not in batch:
        yield
        return
    body = find_body(model)
    assert body is not None, "a model without one is declined"
    handles = [
        body.register_forward_pre_hook(lambda _, args, given: ((), _lay(body, args, given, batch)), with_kwargs=True),
        end_of_layers(body).register_forward_hook(lambda _, __, output: _stack(output, batch)),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def end_of_layers(body: nn.Module) -> nn.Module:
    """Return the module whose output is the last layer's: an encoder within the body, before a pooler, or the body."""
    if body not in _ends:
        layers = {id(layer) for layer in all_layers(body)}
        inside = (
            child
            for child in body.children()
            if not isinstance(child, nn.ModuleList) and layers <= {id(module) for module in child.modules()}
        )
        _ends[body] = next(inside, body) if layers else body
    return _ends[body]


def _lay(body: nn.Module, args: tuple[Any, ...], given: dict[str, Any], batch: Batch) -> dict[str, Any]:
    """Return the arguments of the body's forward for one line of all rows, with position ids and no mask."""
    named = dict(zip(signature(body.forward).parameters, args, strict=False)) | given
    size = batch["attention_mask"].shape
    for name, value in named.items():
        if isinstance(value, torch.Tensor) and value.shape[:2] == size:
            named[name] = value.flatten(0, 1).index_select(0, batch[LINE])[None]
    ahead = _of_one_row(named.get("past_key_values"))
    return named | {"attention_mask": None, "position_ids": batch[LINE_POSITIONS] + ahead}


def _of_one_row(cache: Any) -> int:
    """Leave keys and values of one row in a prefix, which is the same before each; return its length."""
    if cache is None:
        return 0
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[:1], layer.values[:1]
    return cache.get_seq_length()


def _stack(output: Any, batch: Batch) -> Any:
    """Return the output of the last layer with its hidden states as rows, (rows, longest, width), zeros after each."""
    hidden = output if isinstance(output, torch.Tensor) else output[0]
    rows, longest = batch["attention_mask"].shape
    stacked = hidden.new_zeros(rows * longest, hidden.shape[-1]).index_copy(0, batch[LINE], hidden[0])
    stacked = stacked.unflatten(0, (rows, longest))
    if isinstance(output, torch.Tensor):
        return stacked
    if isinstance(output, tuple):
        return (stacked, *output[1:])
    output.last_hidden_state = stacked
    return output
