"""What a strategy of training on several devices says of the memory of each, and of what each sends.

To add one: a file of this folder with a class derived from `Strategy`, and a line in `STRATEGIES` (`__init__.py`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from peftlab.memory.ledger import CATEGORIES
from peftlab.memory.strategies.division import Division, OwnPart, scaled
from peftlab.recipe.schema import Recipe
from peftlab.world.open import STRATEGIES as TRAINED

FROZEN, TRAINABLE, GRADIENTS, STATES, WORKSPACE = map(
    CATEGORIES.index, ("frozen_weights", "trainable_weights", "gradients", "optimiser_state", "workspace")
)


@dataclass(frozen=True)
class Strategy:
    """A way to train on several devices; one that `divides` gives each a part of weights, gradients and states."""

    name: str
    divides: bool = False
    measured: bool = False
    offered: bool = True
    """Whether its steps have as many rows as those of others, so that what they send can be compared."""
    whole_head: bool = False
    """Whether every device has the output head whole."""
    takes_gradients: bool = False
    """Whether each backward pass finds no gradients in the model: those of the pass before are elsewhere."""
    trained_by: str = ""
    """The strategy of training, where it has another name."""

    def why_not(self, recipe: Recipe, device: torch.device) -> str:
        """Return why training with it cannot train a recipe; empty if it can."""
        return TRAINED[self.trained_by or self.name].why_not(recipe, device)

    def keep_own_part(self, model: nn.Module, devices: int) -> OwnPart:
        """Give a model with its method, on the meta device, the sizes that one device computes, where they are smaller.

        Raises UsageError for a model that it cannot train.
        """
        return OwnPart()

    def computing(self) -> AbstractContextManager[None]:
        """Return a context in which what is traced saves for the backward pass what the strategy saves."""
        return nullcontext()

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
                shared[row] = scaled(shared[row], division.part(True), division.whole(True))
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
