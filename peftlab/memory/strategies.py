"""How training on several devices changes the memory of each: what a strategy divides, and what it adds where.

DDP adds the same at every moment. FSDP 2 adds what it gathers at each place of a step, in the order of torch's
`fully_shard` (torch/distributed/fsdp/_fully_shard of 2.13): measured with two processes on the CPU within 2 %.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from peftlab.errors import UsageError, nearest
from peftlab.memory.fakes import UnpredictableError
from peftlab.memory.ledger import CATEGORIES
from peftlab.recipe.schema import Recipe
from peftlab.world.open import STRATEGIES as TRAINED
from peftlab.world.zero3 import LARGEST_BUCKET

FROZEN, TRAINABLE, GRADIENTS, STATES, WORKSPACE = map(
    CATEGORIES.index, ("frozen_weights", "trainable_weights", "gradients", "optimiser_state", "workspace")
)
# Of a gradient's number, which DeepSpeed exchanges in float32.
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Weight:
    """A parameter as it is divided: its rows, the bytes of one, whether it trains, its layer (None outside of all).

    `embeds` says that it is a table of embeddings, whose gradient is the last one of a backward pass.
    """

    rows: int
    row_bytes: int
    trains: bool
    layer: int | None = None
    embeds: bool = False

    @property
    def whole(self) -> int:
        return self.rows * self.row_bytes

    def part(self, devices: int) -> int:
        """Return the bytes on each device, which gets as many rows as the first one."""
        return -(-self.rows // devices) * self.row_bytes


@dataclass(frozen=True)
class Division:
    """A model's weights divided among devices by rows.

    `beside_host` says that the devices have a memory of their own.
    """

    weights: tuple[Weight, ...]
    devices: int
    beside_host: bool = False

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
    def largest_trained(self) -> int:
        """The bytes of the largest parameter that trains."""
        return max((one.whole for one in self.weights if one.trains), default=0)

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


@dataclass(frozen=True)
class Strategy:
    """A way to train on several devices; one that `divides` gives each a part of weights, gradients and states."""

    name: str
    divides: bool = False
    measured: bool = False
    planned: bool = True
    """Whether there is a formula of its memory."""
    trained_by: str = ""
    """The strategy of training, where it has another name."""

    def why_not(self, recipe: Recipe, device: torch.device) -> str:
        """Return why training with it cannot train a recipe; empty if it can."""
        return TRAINED[self.trained_by or self.name].why_not(recipe, device)

    def share(self, part: np.ndarray, key: tuple, division: Division) -> np.ndarray:
        """Return the bytes on one device where one alone has `part`, (categories, events), at a place of a step.

        `key` is the phase, the number of the pass through the model in it, and the place; `state` alone is what exists
        before the first phase.
        """
        shared = part.copy()
        if self.divides:
            for row, trains in ((FROZEN, False), (TRAINABLE, True)):  # buffers, which count as frozen, are whole
                shared[row] -= division.whole(trains) - division.part(trains)
            for row in (GRADIENTS, STATES):
                shared[row] = shared[row] * division.part(True) // max(division.whole(True), 1)
        if key != ("state",):
            shared[WORKSPACE] += self.added_bytes(part, key[1], key[2:], division)
        return shared

    def added_bytes(self, part: np.ndarray, number: int, place: tuple, division: Division) -> np.ndarray | int:
        """Return the further bytes on each device at a place of the pass with this number."""
        raise NotImplementedError

    def saving_bytes(self, division: Division, everything: bool) -> int:
        """Return the further bytes on each device while what was trained, or `everything`, is saved."""
        return 0

    def sent_bytes(self, division: Division, micro_batches: int) -> dict[str, int]:
        """Return what each device sends in an optimiser step, by purpose, in rings of all devices.

        In a ring a device sends all but one device's part of what is gathered or of what is summed and divided.
        """
        raise NotImplementedError


class Ddp(Strategy):
    def added_bytes(self, part: np.ndarray, number: int, place: tuple, division: Division) -> int:
        """Flat buckets contain a second copy of all gradients (gradient_as_bucket_view is off)."""
        return division.whole(True)

    def sent_bytes(self, division: Division, micro_batches: int) -> dict[str, int]:
        """Gradients are summed after the last micro-batch: divided, and gathered again."""
        return {"gradients": 2 * division.all_but_one(division.whole(True))}


class Zero2(Strategy):
    """Weights are whole; a device has its part of the states, and a second copy of its part of what trains.

    In a backward pass all gradients are in one bucket, beside the newest one and its part of those of former passes; in
    the step it has that part twice.
    """

    def share(self, part: np.ndarray, key: tuple, division: Division) -> np.ndarray:
        shared = part.copy()
        own, whole = division.part(True), max(division.whole(True), 1)
        shared[TRAINABLE] += own
        for row in (STATES, GRADIENTS):
            shared[row] = part[row] * own // whole
        if key == ("state",):
            return shared
        if "backward" in key[2]:
            shared[GRADIENTS] = whole + division.largest_trained + (own if key[1] > 1 else 0)
        shared[WORKSPACE] += own if key[2] == "step" else 0
        return shared

    def saving_bytes(self, division: Division, everything: bool) -> int:
        """What trains is copied out of DeepSpeed's buffer."""
        return division.whole(True)

    def sent_bytes(self, division: Division, micro_batches: int) -> dict[str, int]:
        """Gradients are divided after every micro-batch, and weights gathered after the update."""
        own = division.all_but_one(division.whole(True))
        return {"weights": own, "gradients": micro_batches * own}


class Tensor(Strategy):
    """A run knows that there is no plan; which layers are divided depends on the model's own plan."""

    def share(self, part: np.ndarray, key: tuple, division: Division) -> np.ndarray:
        raise UnpredictableError("tensor parallel has no formula yet")

    def sent_bytes(self, division: Division, micro_batches: int) -> dict[str, int]:
        return {}


class Zero3(Strategy):
    """A device has its part of all, a second copy of its part of what trains, and a buffer for that part's gradients.

    Weights are gathered module by module. In a backward pass gradients remain until a bucket is full, and are laid in
    one buffer then.
    """

    def share(self, part: np.ndarray, key: tuple, division: Division) -> np.ndarray:
        shared = super().share(part, key, division)
        own = division.part(True)
        shared[TRAINABLE] += own
        shared[GRADIENTS] = own
        if key != ("state",) and "backward" in key[2]:
            bucket = min(division.whole(True), FLOAT_BYTES * LARGEST_BUCKET + division.largest_trained)
            shared[GRADIENTS] += 2 * np.minimum(part[GRADIENTS], bucket)
        return shared

    def added_bytes(self, part: np.ndarray, number: int, place: tuple, division: Division) -> np.ndarray | int:
        """The largest weight of those that are computed at a place; tied ones may remain from the embeddings on."""
        name = place[0]
        if name == "step":
            return division.part(True)
        if name in ("embedding", "head", "head_backward", "embedding_backward"):
            return division.largest_of(inside=False)
        return division.largest_of(inside=True) if name in ("forward", "backward", "last_backward") else 0

    def saving_bytes(self, division: Division, everything: bool) -> int:
        """What is saved is gathered."""
        return division.all_gathered if everything else division.trained_gathered

    def sent_bytes(self, division: Division, micro_batches: int) -> dict[str, int]:
        """Weights are gathered for every pass, gradients divided after every backward pass."""
        return FSDP2.sent_bytes(division, micro_batches)


class Fsdp2(Strategy):
    def added_bytes(self, part: np.ndarray, number: int, place: tuple, division: Division) -> np.ndarray | int:
        """What is gathered: weights into one buffer, then into tensors of their own; gradients until they are sent.

        In the forward pass a layer's buffer remains until the next layer's weights are there. In the backward pass the
        next layer's buffer is filled meanwhile. What is in no layer is whole from the first layer to the end of a pass.
        """
        layer, outside = division.layer, division.outside
        first, name = place[-2:] == (0, 0), place[0]
        if name == "step":
            return -part[WORKSPACE] * (division.whole(True) - division.part(True)) // max(division.whole(True), 1)
        gathered = {
            "embedding": 2 * outside,
            "forward_gathering": 2 * outside + 2 * layer if first else outside + 3 * layer,
            "forward": outside + 2 * layer,
            "head": outside + layer,
            "head_gathering": max(2 * outside, outside + layer),
            "head_backward": outside + layer,
            "backward_gathering": outside + 2 * layer,
            "last_backward": outside + 2 * layer,
            "backward": outside + (1 if first else 2) * layer,
            "embedding_backward": outside,
        }.get(name, 0)
        return gathered + (self._whole_gradients(part, number, place, division) if "backward" in name else 0)

    def _whole_gradients(self, part: np.ndarray, number: int, place: tuple, division: Division) -> np.ndarray | int:
        """Return what gradients have beyond this device's part of them: those of this place, and the last ones sent.

        From the second pass on one device alone adds each gradient to the former one and keeps no second of it.
        """
        name, again = place[0], number > 1
        new = part[GRADIENTS] - part[GRADIENTS, 0]
        present = new - new * division.part(True) // max(division.whole(True), 1)
        if name.startswith("head"):
            return present
        if again and name in ("backward", "last_backward"):
            present = np.linspace(0, division.layer_trained, len(new)).astype(np.int64)
        sent = 0 if name == "last_backward" else division.layer_trained
        early = division.early_trained
        return present + sent + (early if again else early * (division.devices - 1) // division.devices)

    def saving_bytes(self, division: Division, everything: bool) -> int:
        """Each weight is gathered, with two more copies of it meanwhile, and remains until all are written."""
        peak = saved = 0
        for gathered in (division.gathered(one) for one in division.weights if one.trains or everything):
            peak = max(peak, saved + 3 * gathered)
            saved += gathered
        return peak

    def sent_bytes(self, division: Division, micro_batches: int) -> dict[str, int]:
        """Weights are gathered for every pass, gradients divided after every backward pass."""
        forward, backward = division.all_gathered, division.gathered_backward
        return {
            "weights": micro_batches * division.all_but_one(forward + backward),
            "gradients": micro_batches * division.all_but_one(division.trained_gathered),
        }


class Fsdp2Offload(Fsdp2):
    def share(self, part: np.ndarray, key: tuple, division: Division) -> np.ndarray:
        """Weights, gradients and states are in the host's memory where that is another one than the device's."""
        shared = super().share(part, key, division)
        if division.beside_host:
            for row, trains in ((FROZEN, False), (TRAINABLE, True)):
                shared[row] -= division.part(trains)
            shared[[GRADIENTS, STATES]] = 0
            shared[WORKSPACE] += 0 if key == ("state",) else division.layer // division.devices
        return shared


FSDP2 = Fsdp2("fsdp2", divides=True, measured=True)
STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Ddp("ddp", measured=True),
        Zero2("zero2", measured=True),
        FSDP2,
        Zero3("zero3", divides=True),
        Fsdp2Offload("fsdp2-offload", divides=True, trained_by="fsdp2"),
        Tensor("tensor", divides=True, planned=False),
    )
}


def find_strategy(name: str) -> Strategy:
    """Return a strategy by name. Raises UsageError for one that training does not support."""
    trained = {key: one for key, one in STRATEGIES.items() if (one.trained_by or key) in TRAINED}
    if name not in trained:
        planned = [key for key, one in trained.items() if one.planned]
        raise UsageError(f"unknown strategy {name!r}{nearest(name, planned)}; supported: {', '.join(planned)}")
    return trained[name]
