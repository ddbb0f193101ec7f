"""How training on several devices changes the memory of each: closed formulas on the ledger's categories.

A strategy divides evenly what it divides, and adds the same at every moment. DDP's was measured with two
processes on the CPU (a steady step of full fine-tuning: +0.2 %), FSDP 2's state too (LoRA: within 0.1 %) but not what
it adds. Nothing trains with the others, and `find_strategy` returns only what training supports.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from peftlab.errors import UsageError, nearest
from peftlab.memory.ledger import CATEGORIES
from peftlab.world.open import STRATEGIES as TRAINED

WEIGHTS = ("frozen_weights", "quantisation_state", "trainable_weights")
# DeepSpeed's defaults: reduce_bucket_size and stage3_max_live_parameters, in elements of float32.
ZERO_BUCKET_BYTES = 500_000_000 * 4
ZERO_LIVE_BYTES = 1_000_000_000 * 4


@dataclass(frozen=True)
class State:
    """Bytes of the state on one device alone: by category, of the largest layer, and outside the layers."""

    categories: Mapping[str, int]
    layer_weights: int
    layer_trainable: int
    outside_weights: int

    @property
    def weights(self) -> int:
        return sum(self.categories[name] for name in WEIGHTS)

    @property
    def trainable(self) -> int:
        return self.categories["trainable_weights"]


@dataclass(frozen=True)
class Strategy:
    """A way to train on several devices; `divided` names the categories that it divides among them."""

    name: str
    divided: tuple[str, ...] = ()
    measured: bool = False

    @property
    def divides_weights(self) -> bool:
        return set(WEIGHTS) <= set(self.divided)

    def shares(self, devices: int) -> np.ndarray:
        """Return the fraction of each category that is on one device."""
        return np.array([1 / devices if name in self.divided else 1.0 for name in CATEGORIES])

    def added_bytes(self, state: State, devices: int) -> int:
        """Return the further bytes on each device."""
        raise NotImplementedError


class Ddp(Strategy):
    def added_bytes(self, state: State, devices: int) -> int:
        """Flat buckets contain a second copy of all gradients (gradient_as_bucket_view is off)."""
        return state.trainable


class Fsdp2(Strategy):
    def added_bytes(self, state: State, devices: int) -> int:
        """Whole weights of a layer and the prefetched one, of what is outside the layers, and a layer's gradients."""
        return 2 * state.layer_weights + state.outside_weights + state.layer_trainable


class ZeroBuckets(Strategy):
    def added_bytes(self, state: State, devices: int) -> int:
        """A bucket to reduce gradients in, and this device's part of a float32 copy of what trains."""
        return min(ZERO_BUCKET_BYTES, state.trainable) + state.trainable // devices


class ZeroLive(Strategy):
    def added_bytes(self, state: State, devices: int) -> int:
        """Whole weights up to the limit of live ones, a bucket of gradients, and a part of a float32 copy."""
        live = min(ZERO_LIVE_BYTES, state.weights)
        return live + min(ZERO_BUCKET_BYTES, state.trainable) + state.trainable // devices


STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Ddp("ddp", measured=True),
        Fsdp2("fsdp2", (*WEIGHTS, "gradients", "optimiser_state")),
        ZeroBuckets("zero1", ("optimiser_state",)),
        ZeroBuckets("zero2", ("optimiser_state", "gradients")),
        ZeroLive("zero3", (*WEIGHTS, "gradients", "optimiser_state")),
    )
}


def find_strategy(name: str) -> Strategy:
    """Return a strategy by name. Raises UsageError for one that training does not support, whatever can be planned."""
    supported = [known for known in STRATEGIES if known in TRAINED]
    if name in supported:
        return STRATEGIES[name]
    if name in STRATEGIES:
        raise UsageError(f"strategy {name!r}: training does not support it yet; supported: {', '.join(supported)}")
    raise UsageError(f"unknown strategy {name!r}{nearest(name, supported)}; supported: {', '.join(supported)}")
