"""Tensor parallel: every device computes a part of each dense layer, on the same rows.

What is traced is that part, so that weights, gradients, states and activations are those of one device.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from peftlab.memory.strategies.division import Division, OwnPart
from peftlab.memory.strategies.strategy import STATES, WORKSPACE, Strategy
from peftlab.world.tensor import count_sums, keep_own_part_


class Tensor(Strategy):
    def keep_own_part(self, model: nn.Module, devices: int) -> OwnPart:
        return OwnPart(keep_own_part_(model, devices), count_sums(model))

    def share(self, part: np.ndarray, key: tuple, division: Division) -> np.ndarray:
        """An update takes parameters one by one, since functions of many refuse whole ones beside divided ones."""
        shared = part.copy()
        if key[2:] == ("step",) and part[STATES].any():
            shared[WORKSPACE] += division.temporaries
        return shared

    def saving_bytes(self, division: Division, everything: bool) -> int:
        """What is divided is gathered, with one more copy of it meanwhile, and remains until all is written."""
        peak = saved = 0
        for one in division.weights:
            if one.is_part and (one.trains or everything):
                peak = max(peak, saved + 2 * division.devices * one.whole)
                saved += division.devices * one.whole
        return peak

    def sent_bytes(self, division: Division, micro_batches: int) -> dict[str, int]:
        """Outputs of layers divided by inputs, and gradients of others' inputs, are summed: divided, and gathered."""
        if division.summed is None:
            return {}
        return {"activations": micro_batches * 2 * division.all_but_one(division.summed)}
