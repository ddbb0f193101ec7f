"""A deep model traced as a shallow one: a few layers stand for the many that are like them.

Every storage belongs to one layer or to none, so the bytes in use at one place of a step grow by the same
amount with every further layer of a kind. Tracing a kind three and four times gives that amount, at every event.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from torch import nn

# The first and last two layers of a run have places of their own in a step, so that three can be told from four.
KEPT = 3

Segments = dict[Hashable, np.ndarray]


@dataclass(frozen=True)
class LayerPlace:
    """Where a kept layer stands: which run of alike layers, and its places there (0, 1 from the start, -1, -2)."""

    run: int
    places: tuple[int, ...]


class Stack:
    """The list of a model's layers, and the runs of alike ones in it."""

    def __init__(self, model: nn.Module):
        self.parent, self.name, layers = find_layers(model)
        self.layers = list(layers)
        alike = groupby(range(len(self.layers)), key=_likeness(self.layers).__getitem__)
        self.runs = [list(group) for _, group in alike]

    @property
    def long_runs(self) -> list[int]:
        return [number for number, run in enumerate(self.runs) if len(run) > KEPT]

    def keep(self, longer: int | None = None) -> list[tuple[nn.Module, LayerPlace]]:
        """Put a shortened list into the model, one run a layer longer than the others; return what is in it."""
        kept: list[tuple[nn.Module, LayerPlace]] = []
        for number, run in enumerate(self.runs):
            count = min(len(run), KEPT + (number == longer))
            indices = [*run[: count - 1], run[-1]]
            kept += [(self.layers[index], LayerPlace(number, _places(i, count))) for i, index in enumerate(indices)]
        self._put([layer for layer, _ in kept])
        return kept

    def restore(self) -> None:
        self._put(self.layers)

    def _put(self, layers: list[nn.Module]) -> None:
        if self.name:
            setattr(self.parent, self.name, nn.ModuleList(layers))

    def extend(self, base: Segments, longer: dict[int, Segments]) -> Segments:
        """Return the segments of the whole model, from those of the shortest and those with one run longer."""
        return {key: self._extend_one(key, part, longer) for key, part in base.items()}

    def _extend_one(self, key: Hashable, part: np.ndarray, longer: dict[int, Segments]) -> np.ndarray:
        others = {run: segments[key] for run, segments in longer.items()}
        if any(other.shape != part.shape for other in others.values()):
            # Something in this place happens once a layer (an optimiser's step): only its peak can be compared.
            part, others = _at_peak(part), {run: _at_peak(other) for run, other in others.items()}
        growth = sum((len(self.runs[run]) - KEPT) * (other - part) for run, other in others.items())
        return part + growth


def find_layers(model: nn.Module) -> tuple[nn.Module, str, nn.ModuleList]:
    """Return the parent, the name and the list that holds most of the model's parameters."""
    lists = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList)
    ]
    if not lists:
        empty = nn.ModuleList()
        return model, "", empty
    return max(lists, key=lambda found: sum(p.numel() for p in found[2].parameters()))


def _likeness(layers: list[nn.Module]) -> list[tuple]:
    """Return for each layer what makes it like another: its parameters, and whether gradients reach it."""
    reached, found = False, []
    for layer in layers:
        named = list(layer.named_parameters())
        reached = reached or any(p.requires_grad for _, p in named)
        found.append((reached, *((name, tuple(p.shape), p.dtype, p.requires_grad) for name, p in named)))
    return found


def _places(position: int, count: int) -> tuple[int, ...]:
    if count < KEPT:
        return (position,)
    from_start = (position,) if position < 2 else ()
    return from_start + ((position - count,) if position >= count - 2 else ())


def _at_peak(part: np.ndarray) -> np.ndarray:
    return part[:, [part.sum(0).argmax()]]
