"""A model whose weights are divided before a strategy has it: they are gathered where they are computed.

A base is evaluated, and gets a method, before its strategy divides what trains too. Until then each process has its
rows of every weight, and a forward pass gathers a layer's when it begins, and drops them when it ends.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from peftlab.parameters.divided import places_of, replace_, whole
from peftlab.parameters.kinds import layer_lists
from peftlab.parameters.trainable import find_base

HOOKS = "_peftlab_gathering"


def gather_where_computed(model: nn.Module) -> None:
    """Let each layer of a plain model, and what is beside the layers, gather its divided weights in a forward pass.

    All processes must make the same passes, without gradients. It ends with `stop_gathering`.
    """
    layers = set(_layers(model))
    handles = []
    for unit in (*layers, *(one for one in model.modules() if isinstance(one, PreTrainedModel))):
        gathered = _Gathered(unit, layers)
        handles += [
            unit.register_forward_pre_hook(lambda *_, one=gathered: one.gather()),
            unit.register_forward_hook(lambda *_, one=gathered: one.drop(), always_call=True),
        ]
    vars(model)[HOOKS] = handles


def stop_gathering(model: nn.Module) -> None:
    """Remove what `gather_where_computed` added to the plain model inside `model`."""
    for handle in vars(find_base(model)[1]).pop(HOOKS, ()):
        handle.remove()


class _Gathered:
    """A module's weights, outside of the layers in it, that its forward pass has gathered."""

    def __init__(self, unit: nn.Module, layers: set[nn.Module]):
        self._unit, self._inner = unit, layers - {unit}
        self._places: list[tuple[nn.Module, str, nn.Parameter]] = []

    @torch.inference_mode(False)
    @torch.no_grad()
    def gather(self) -> None:
        """Put whole weights where divided ones are; those that a module around this one has gathered are whole."""
        for parameter, places in places_of(self._modules()).items():
            if isinstance(parameter, DTensor):
                replace_(parameter, whole(parameter.detach()), places)
                self._places += [(module, name, parameter) for module, name in places]

    def drop(self) -> None:
        for module, name, parameter in self._places:
            module._parameters[name] = parameter
        self._places.clear()

    def _modules(self) -> Iterator[nn.Module]:
        """Yield the modules of this one as they are now: a method may have added some."""
        waiting = [self._unit]
        while waiting:
            module = waiting.pop()
            yield module
            waiting += [one for one in module.children() if one not in self._inner]


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    for path in layer_lists(model):
        yield from model.get_submodule(path).children()
