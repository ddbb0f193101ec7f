"""Tensor parallel: every device has a part of each dense layer."""

from __future__ import annotations

import numpy as np

from peftlab.memory.fakes import UnpredictableError
from peftlab.memory.strategies.division import Division
from peftlab.memory.strategies.strategy import Strategy


class Tensor(Strategy):
    """A run knows that there is no plan; which layers are divided depends on the model's own plan."""

    def share(self, part: np.ndarray, key: tuple, division: Division) -> np.ndarray:
        raise UnpredictableError("tensor parallel has no formula yet")

    def sent_bytes(self, division: Division, micro_batches: int) -> dict[str, int]:
        return {}
