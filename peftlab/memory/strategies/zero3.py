"""ZeRO-3: every device has a part of all, and DeepSpeed gathers it module by module.

Source: deepspeed/runtime/zero of 0.19.8 (`stage3.py`, `partitioned_param_coordinator.py`) with the settings of
`peftlab/world/zero3.py`. Measured with two processes on the CPU within 2 %.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import numpy as np

from peftlab.memory.strategies.division import TEMPORARIES, Division
from peftlab.memory.strategies.fsdp2 import sent_by_parts
from peftlab.memory.strategies.strategy import GRADIENTS, STATES, TRAINABLE, Strategy
from peftlab.world.gathered_linear import gathered_linears
from peftlab.world.zero3 import Zero3 as Training

# Of a gradient's number, which DeepSpeed exchanges in float32.
FLOAT_BYTES = 4
# Of a bucket's gradients while they are exchanged: one flat buffer, and gloo's own copy of that.
COPIES, COPIES_OF_GLOO = 1, 1


class Zero3(Strategy):
    """A device has its part of all, a second copy of its part of what trains, and a buffer for that part's gradients.

    Weights are gathered module by module, and remain only while it is computed. In a backward pass whole gradients
    remain until a bucket is full, or the pass ends; then they are laid in one buffer, exchanged and freed. Every pass
    is so, also where one device alone adds its gradients to former ones.
    """

    def computing(self) -> AbstractContextManager[None]:
        return gathered_linears()

    def share(self, part: np.ndarray, key: tuple, division: Division) -> np.ndarray:
        shared = super().share(part, key, division)
        own = division.part(True)
        shared[TRAINABLE] += own
        shared[GRADIENTS] = own
        if key != ("state",) and key[1] == 1 and "backward" in key[2]:
            shared[GRADIENTS] += self._whole_gradients(part[GRADIENTS], division)
        return shared

    def _whole_gradients(self, gradients: np.ndarray, division: Division) -> np.ndarray:
        """Return the bytes of whole gradients and their copies, where one device alone has so many at each event."""
        whole = division.whole(True)
        bucket = min(whole, FLOAT_BYTES * Training.largest_bucket)
        copies = bucket * (COPIES + (0 if division.beside_host else COPIES_OF_GLOO))
        present = np.minimum(gradients, bucket)
        if bucket < whole:
            return present + np.where(gradients >= bucket, copies, 0)
        if gradients[-1] >= whole:  # the pass ends
            present[-1] += copies
        return present

    def added_bytes(self, part: np.ndarray, number: int, place: tuple, division: Division) -> np.ndarray | int:
        """The largest weight of those that are computed at a place; an update's gradients and temporaries in it."""
        name = place[0]
        if name == "step":
            return division.part(True) * (1 + (TEMPORARIES if part[STATES].any() else 0))
        if name in ("embedding", "head", "head_backward"):
            return division.largest_of(inside=False)
        if name == "embedding_backward":  # a table remains until the pass ends, since no gradient leaves its layer
            return division.embeddings_trained
        return division.largest_of(inside=True) if name in ("forward", "backward", "last_backward") else 0

    def saving_bytes(self, division: Division, everything: bool) -> int:
        """What is saved is gathered."""
        return division.all_gathered if everything else division.trained_gathered

    def sent_bytes(self, division: Division, micro_batches: int) -> dict[str, int]:
        """Weights are gathered for every pass, gradients divided after every backward pass."""
        return sent_by_parts(division, micro_batches)
