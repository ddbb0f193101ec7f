"""ZeRO-2: every device has the whole model, a part of states, and DeepSpeed's buffers."""

from __future__ import annotations

import numpy as np

from peftlab.memory.strategies.division import Division
from peftlab.memory.strategies.strategy import GRADIENTS, STATES, TRAINABLE, WORKSPACE, Strategy


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
