"""Rows of new tokens in frozen embeddings, through PEFT's trainable token indices: only these rows train."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from peftlab.shapes import ModelShape, ParameterSite

if TYPE_CHECKING:
    from torch import nn

ROWS = "token_adapter.trainable_tokens_delta"


def row_sites(shape: ModelShape, whole: Iterable[str] = ()) -> tuple[ParameterSite, ...]:
    """Return the rows of new tokens in every table of tokens, but for tables named in `whole`, which train anyway."""
    new, whole = shape.new_tokens, set(whole)
    if new is None:
        return ()
    tables = [shape.by_name[f"{table[0]}.weight"] for table in new.tables]
    return tuple(
        ParameterSite(f"{table.name.removesuffix('.weight')}.{ROWS}", (len(new.ids), table.shape[1]), table.kind)
        for table in tables
        if table.name not in whole
    )


def insert_rows(model: nn.Module, shape: ModelShape, sites: Iterable[ParameterSite]) -> None:
    """Put the rows of `sites` beside their tables, in every module that uses a table."""
    from peft.utils.other import TrainableTokensWrapper

    from peftlab.parameters.trainable import find_base

    if (new := shape.new_tokens) is None:
        return
    base, wanted = find_base(model)[1], {site.name for site in sites}
    for names in new.tables:
        if f"{names[0]}.{ROWS}" not in wanted:
            continue
        modules = {name: base.get_submodule(name) for name in names}
        wrappers: dict[int, Any] = {}
        for name, module in modules.items():
            first = next(iter(wrappers.values())).token_adapter if wrappers else None
            if id(module) not in wrappers:
                wrappers[id(module)] = TrainableTokensWrapper(module, "default", list(new.ids), first)
            _replace(base, name, wrappers[id(module)])


def list_indices(model: nn.Module) -> dict[str, list[int]]:
    """Return PEFT's `trainable_token_indices` of a model: the ids by the name of each table's first module."""
    return {
        name.removesuffix(".token_adapter"): list(layer.token_indices["default"])
        for name, layer in _layers(model)
        if layer.tied_adapter is None
    }


def copy_with_rows(model: nn.Module) -> nn.Module:
    """Return a copy of `model` with the rows of new tokens in its tables."""
    copied = deepcopy(model)
    for _, layer in _layers(copied):
        if layer.tied_adapter is None:
            layer.merge()
    for name, layer in list(_layers(copied)):
        _replace(copied, name.removesuffix(".token_adapter"), layer.base_layer)
    return copied


def with_rows_of(model: nn.Module, plain: nn.Module) -> nn.Module:
    """Return `plain`, a base that is not quantised, with the rows of new tokens that `model` has."""
    from peftlab.parameters.trainable import find_base

    for name, layer in _layers(find_base(model)[1]):
        if layer.tied_adapter is None:
            weight = plain.get_submodule(name.removesuffix(".token_adapter")).get_parameter("weight")
            rows = layer.trainable_tokens_delta["default"]
            weight.data[layer.token_indices["default"]] = rows.detach().to(weight)
    return plain


def has_rows(model: nn.Module) -> bool:
    return any(True for _ in _layers(model))


def _layers(model: nn.Module) -> Iterable[tuple[str, Any]]:
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    return ((name, one) for name, one in model.named_modules() if isinstance(one, TrainableTokensLayer))


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
