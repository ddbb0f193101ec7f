"""ZeRO-3: every device has a part of all, and DeepSpeed gathers it module by module."""

from __future__ import annotations

import numpy as np

from peftlab.memory.strategies.division import Division
from peftlab.memory.strategies.fsdp2 import sent_by_parts
from peftlab.memory.strategies.strategy import GRADIENTS, TRAINABLE, Strategy
from peftlab.world.zero3 import Zero3 as Training

# Of a gradient's number, which DeepSpeed exchanges in float32.
FLOAT_BYTES = 4


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
            bucket = min(division.whole(True), FLOAT_BYTES * Training.largest_bucket + division.largest_trained)
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
        return sent_by_parts(division, micro_batches)
