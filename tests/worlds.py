"""Worlds for tests: simulated processes."""

from __future__ import annotations

from collections.abc import Callable

import torch

from peftlab.world.single import Single


class PretendedWorld(Single):
    """One of several processes on the CPU; `gather` is what joins their lists."""

    def __init__(self, process: int = 0, processes: int = 1, gather: Callable[[list], list] = list):
        self.device, self.process, self.processes, self.notes = torch.device("cpu"), process, processes, ()
        self._gather = gather

    def gather(self, items: list) -> list:
        return self._gather(items)
