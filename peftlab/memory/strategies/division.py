"""A model's weights as processes divide them by rows."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

# Of AdamW for numbers that are updated together, one tensor at a time: the root of the second moment, and that divided.
TEMPORARIES = 2


def scaled(counts: np.ndarray, part: int, whole: int) -> np.ndarray:
    """Return `counts` * `part` // `whole`. The product of two sizes in bytes needs more than 64 bits."""
    return np.asarray(counts.astype(object) * part // max(whole, 1)).astype(np.int64)


@dataclass(frozen=True)
class Weight:
    """A parameter as it is divided: its rows, the bytes of one, whether it trains, its layer (None outside of all).

    `embeds` says that it is a table of embeddings, whose gradient is the last one of a backward pass, `is_part` that it
    is one device's part already, `is_matrix` that an optimizer has it in the group with weight decay.
    """

    rows: int
    row_bytes: int
    trains: bool
    layer: int | None = None
    embeds: bool = False
    is_part: bool = False
    is_matrix: bool = True

    @property
    def whole(self) -> int:
        return self.rows * self.row_bytes

    def part(self, devices: int) -> int:
        """Return the bytes on each device, which gets as many rows as the first one."""
        return -(-self.rows // devices) * self.row_bytes


@dataclass(frozen=True)
class OwnPart:
    """What one device computes of a model: the canonical names of smaller parameters, and the numbers that are summed.

    `summed` are those of each token in a forward and in a backward pass; None where they are not known.
    """

    names: frozenset[str] = frozenset()
    summed: tuple[int, int] | None = None


@dataclass(frozen=True)
class Division:
    """A model's weights divided among devices by rows.

    `beside_host` says that the devices have a memory of their own. `summed` are the bytes that all devices sum in the
    passes of a micro-batch, None where that is not known.
    """

    weights: tuple[Weight, ...]
    devices: int
    beside_host: bool = False
    summed: int | None = None

    def whole(self, trains: bool) -> int:
        """Return the bytes of what trains, or of what is frozen, on one device alone."""
        return sum(one.whole for one in self.weights if one.trains is trains)

    def part(self, trains: bool) -> int:
        """Return the bytes of it on each device."""
        return sum(one.part(self.devices) for one in self.weights if one.trains is trains)

    def gathered(self, one: Weight) -> int:
        """Return the bytes of all devices' parts of a weight, which are equally large."""
        return self.devices * one.part(self.devices)

    @cached_property
    def layer(self) -> int:
        """The bytes of the largest layer's gathered weights."""
        return max(self._by_layer(self.weights), default=0)

    @cached_property
    def layer_trained(self) -> int:
        """The bytes of what trains of the layer with most of it."""
        return max(self._by_layer(one for one in self.weights if one.trains), default=0)

    @cached_property
    def temporaries(self) -> int:
        """The bytes that AdamW has beside its states where it updates one parameter after the other.

        A parameter's last one remains until that of the next parameter is there; matrices are a group of their own.
        """
        trained = [one for one in self.weights if one.trains]
        groups = ([0] + [one.whole for one in trained if one.is_matrix is kind] for kind in (True, False))
        return max((former + TEMPORARIES * size for group in groups for former, size in pairwise(group)), default=0)

    def largest_of(self, inside: bool) -> int:
        """Return the bytes of the largest gathered weight inside of layers, or outside of them."""
        return max((self.gathered(one) for one in self.weights if (one.layer is not None) is inside), default=0)

    @cached_property
    def outside(self) -> int:
        """The bytes of the gathered weights that are in no layer: embeddings, last norm and head."""
        return sum(self.gathered(one) for one in self.weights if one.layer is None)

    @cached_property
    def early_trained(self) -> int:
        """The bytes of trained weights in no layer whose gradients are there before any layer's: head and last norm."""
        return sum(self.gathered(one) for one in self.weights if one.layer is None and one.trains and not one.embeds)

    @cached_property
    def embeddings_trained(self) -> int:
        """The bytes of the gathered embeddings that train."""
        return sum(self.gathered(one) for one in self.weights if one.trains and one.embeds)

    def all_but_one(self, count: int) -> int:
        """Return the bytes of all but one device's equal part of `count`."""
        return count * (self.devices - 1) // self.devices

    @property
    def all_gathered(self) -> int:
        return sum(self.gathered(one) for one in self.weights)

    @property
    def trained_gathered(self) -> int:
        return sum(self.gathered(one) for one in self.weights if one.trains)

    @property
    def gathered_backward(self) -> int:
        """The bytes of what a backward pass gathers: all from the first layer that trains on, and the one before it.

        Training what is in no layer reaches the head alone, or with the embeddings all layers.
        """
        trained = [one for one in self.weights if one.trains]
        layers = [one.layer for one in trained if one.layer is not None]
        first = 0 if any(one.embeds for one in trained) else min(layers, default=sys.maxsize) - 1
        return sum(self.gathered(one) for one in self.weights if one.layer is None or one.layer >= first)

    def _by_layer(self, weights: Iterable[Weight]) -> list[int]:
        layers: dict[int, int] = {}
        for one in weights:
            if one.layer is not None:
                layers[one.layer] = layers.get(one.layer, 0) + self.gathered(one)
        return list(layers.values())
