"""A model's lists of layers, and which of its layers gradients reach."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from peftlab.parameters.kinds import layer_lists, parameter_sites
from peftlab.parameters.trainable import find_base


@dataclass(frozen=True)
class LayerList:
    """A list of layers, and where it is in a model."""

    parent: nn.Module
    name: str
    layers: nn.ModuleList


def find_layers(model: nn.Module) -> list[LayerList]:
    """Return the lists of an encoder and its decoder; of other models the list with most parameters, if any.

    A list of single tables or dense layers (MarkupLM has an embedding for each level of a page) has no layers in it.
    """
    paths = layer_lists(model)
    if getattr(getattr(find_base(model)[1], "config", None), "is_encoder_decoder", False):
        return [_list_at(model, path) for path in paths]
    found = [_list_at(model, path) for path, module in model.named_modules() if _has_layers(module)]
    return [max(found, key=lambda one: sum(p.numel() for p in one.layers.parameters()))] if found else []


def all_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a model, an encoder's before its decoder's."""
    return [layer for one in find_layers(model) for layer in one.layers]


def reached_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers that gradients reach: from the lowest that trains, or all where something before them may."""
    layers = all_layers(model)
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    before = [
        site for site, p in parameter_sites(model) if p.requires_grad and id(p) not in inside and site.kind != "head"
    ]
    if before:
        return layers
    trains = [any(parameter.requires_grad for parameter in layer.parameters()) for layer in layers]
    return layers[trains.index(True) :] if any(trains) else []


def _has_layers(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList) and all(any(True for _ in one.children()) for one in module)


def _list_at(model: nn.Module, path: str) -> LayerList:
    parent, _, name = path.rpartition(".")
    layers = model.get_submodule(path)
    assert isinstance(layers, nn.ModuleList)
    return LayerList(model.get_submodule(parent), name, layers)
