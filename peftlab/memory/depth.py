"""A deep model traced as a shallow one: a few layers represent all that are equal to them.

Every storage belongs to one layer or to none, so the bytes in use at one place of a step grow by the same
amount with every further layer of a kind. Tracing a kind three and four times gives that amount, at every event.
Kinds may alternate, such as attention with and without a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from peftlab.memory.private import layer_types
from peftlab.models.recompute import is_recomputed
from peftlab.parameters.layers import LayerList, all_layers, find_layers
from peftlab.parameters.trainable import find_base

# The first and last two layers of a kind have places of their own in a step: three and four of them differ in one.
KEPT = 3

Segments = dict[tuple, np.ndarray]


@dataclass(frozen=True)
class LayerPlace:
    """The position of a kept layer: which kind it is, and its places there (0, 1 from the start, -1, -2).

    `is_last` says that it is the model's last layer.
    """

    run: int
    places: tuple[int, ...]
    is_last: bool = False

    @property
    def is_first(self) -> bool:
        """Whether it is the model's first layer."""
        return self.run == 0 and 0 in self.places


class Stack:
    """A model's layers, an encoder's before a decoder's, and the numbers of those of each kind: its runs."""

    def __init__(self, model: nn.Module):
        self.lists = find_layers(model)
        self.layers = all_layers(model)
        types = layer_types(find_base(model)[1])
        self.types = types if len(types) == len(self.layers) else ("",) * len(self.layers)
        kinds: dict[tuple, list[int]] = {}
        owners = [number for number, one in enumerate(self.lists) for _ in one.layers]
        for index, kind in enumerate(_kinds(self.layers)):
            kinds.setdefault((owners[index], self.types[index], *kind), []).append(index)
        self.runs = list(kinds.values())

    @property
    def long_runs(self) -> list[int]:
        return [number for number, run in enumerate(self.runs) if len(run) > KEPT]

    def keep(self, longer: int | None = None) -> list[tuple[nn.Module, LayerPlace]]:
        """Put shortened lists into the model, one kind a layer longer than the others; return what is in them."""
        kept: list[tuple[int, LayerPlace]] = []
        for number, run in enumerate(self.runs):
            count = min(len(run), KEPT + (number == longer))
            indices = [*run[: count - 1], run[-1]]
            last = len(self.layers) - 1
            kept += [(index, LayerPlace(number, _places(i, count), index == last)) for i, index in enumerate(indices)]
        kept.sort(key=lambda one: one[0])
        self._put({index for index, _ in kept})
        return [(self.layers[index], place) for index, place in kept]

    def _shortened(self, one: LayerList, first: int, kept: set[int]) -> list[nn.Module]:
        """Return a list's kept layers, in their own positions where a model of several types looks them up by those."""
        numbered = list(enumerate(one.layers, start=first))
        if len(set(self.types)) < 2:
            return [layer for index, layer in numbered if index in kept]
        return [layer if index in kept else _Skipped(layer) for index, layer in numbered]

    def restore(self) -> None:
        for one in self.lists:
            setattr(one.parent, one.name, one.layers)

    def _put(self, kept: set[int]) -> None:
        first = 0
        for one in self.lists:
            setattr(one.parent, one.name, nn.ModuleList(self._shortened(one, first, kept)))
            first += len(one.layers)

    def extend(self, base: Segments, longer: dict[int, Segments]) -> Segments:
        """Return the segments of the whole model, from those of the shortest and those with one more of a kind."""
        return {key: self._extend_one(key, part, longer) for key, part in base.items()}

    def _extend_one(self, key: tuple, part: np.ndarray, longer: dict[int, Segments]) -> np.ndarray:
        others = {run: segments[key] for run, segments in longer.items()}
        if any(other.shape != part.shape for other in others.values()):
            # Something here happens once for each layer (an optimiser's step): only its peak can be compared.
            part, others = _at_peak(part), {run: _at_peak(other) for run, other in others.items()}
        growth = sum((len(self.runs[run]) - KEPT) * (other - part) for run, other in others.items())
        return part + growth


class _Skipped(nn.Module):
    """Passes hidden states on in the position of a layer that is not traced; has that layer's attributes."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.__dict__["layer"] = layer  # not a submodule: its parameters must not count

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["layer"], name)

    def forward(self, hidden_states: torch.Tensor, *_, **__) -> torch.Tensor:
        return hidden_states


def _kinds(layers: list[nn.Module]) -> list[tuple]:
    """Return for each layer what its memory depends on: parameters, whether gradients reach it, what it keeps."""
    reached, found = False, []
    for layer in layers:
        named = list(layer.named_parameters())
        reached = reached or any(p.requires_grad for _, p in named)
        parameters = ((name, tuple(p.shape), p.dtype, p.requires_grad) for name, p in named)
        found.append((reached, is_recomputed(layer), *parameters))
    return found


def _places(position: int, count: int) -> tuple[int, ...]:
    if count < KEPT:
        return (position,)
    from_start = (position,) if position < 2 else ()
    return from_start + ((position - count,) if position >= count - 2 else ())


def _at_peak(part: np.ndarray) -> np.ndarray:
    return part[:, [part.sum(0).argmax()]]
