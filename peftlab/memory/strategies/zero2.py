"""ZeRO-2: every device has the whole model, a part of states, and DeepSpeed's buffers."""

from __future__ import annotations

import numpy as np

from peftlab.memory.strategies.division import TEMPORARIES, Division, scaled
from peftlab.memory.strategies.strategy import (
    GRADIENTS,
    STATES,
    TRAINABLE,
    WORKSPACE,
    Strategy,
)


class Zero2(Strategy):
    """Weights are whole; a device has its part of the states, and a second copy of its part of what trains.

    In a backward pass all gradients are in one bucket from the first one on, beside the newest one and its part of
    those of former passes; in the step it has that part twice.
    """

    def share(self, part: np.ndarray, key: tuple, division: Division) -> np.ndarray:
        shared = part.copy()
        own, whole = division.part(True), max(division.whole(True), 1)
        shared[TRAINABLE] += own
        for row in (STATES, GRADIENTS):
            shared[row] = scaled(part[row], own, whole)
        if key == ("state",):
            return shared
        if "backward" in key[2]:
            shared[GRADIENTS] = self._backward(part[GRADIENTS], key[1], whole, own)
        if key[2] == "step":  # all that this device updates is one tensor
            shared[WORKSPACE] += own * (1 + (TEMPORARIES if part[STATES].any() else 0))
        return shared

    def _backward(self, gradients: np.ndarray, number: int, whole: int, own: int) -> np.ndarray:
        """Return the bytes of gradients where those of one pass are so many at each of its events."""
        changes = np.diff(gradients, prepend=gradients[:1])
        last = np.maximum.accumulate(np.where(changes > 0, np.arange(len(changes)), 0))
        bucket = np.where(gradients > 0, whole + np.maximum(changes[last], 0), 0)
        return bucket + (own if number > 1 else 0)

    def saving_bytes(self, division: Division, everything: bool) -> int:
        """What trains is copied out of DeepSpeed's buffer."""
        return division.whole(True)

    def sent_bytes(self, division: Division, micro_batches: int) -> dict[str, int]:
        """Gradients are divided after every micro-batch, and weights gathered after the update."""
        own = division.all_but_one(division.whole(True))
        return {"weights": own, "gradients": micro_batches * own}
