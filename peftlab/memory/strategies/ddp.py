"""DDP: every device has the whole model, and buckets of gradients beside it."""

from __future__ import annotations

import numpy as np

from peftlab.memory.strategies.division import Division
from peftlab.memory.strategies.strategy import Strategy


class Ddp(Strategy):
    def added_bytes(self, part: np.ndarray, number: int, place: tuple, division: Division) -> int:
        """Flat buckets contain a second copy of all gradients (gradient_as_bucket_view is off)."""
        return division.whole(True)

    def sent_bytes(self, division: Division, micro_batches: int) -> dict[str, int]:
        """Gradients are summed after the last micro-batch: divided, and gathered again."""
        return {"gradients": 2 * division.all_but_one(division.whole(True))}
