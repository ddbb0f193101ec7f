"""Who takes part in a race, and how often, where the time for all races is limited."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

# What peers that do not take part in every race have. Neither peft nor transformers has adapters and BitFit: there TRL
# would train a model that somebody made by hand.
METHODS_OF = {"trl": ("lora", "full", "qlora", "prefix"), "adapterhub": ("adapters",)}
ON_CUDA = frozenset({"liger"})
"""Peers whose kernels need a CUDA device."""


def peers_on(device: str, peers: Iterable[str]) -> list[str]:
    return [peer for peer in peers if device == "cuda" or peer not in ON_CUDA]


def peers_that_have(method: str, peers: Iterable[str]) -> list[str]:
    return [peer for peer in peers if method in METHODS_OF.get(peer, (method,))]


@dataclass(frozen=True)
class Turns:
    """The turns of one race: `rounds`, or as many as end before `until`, but one."""

    rounds: int
    until: float = float("inf")
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def of_race(cls, rounds: int, minutes: float | None, started: float, left: int) -> Turns:
        """Return the turns of the next race of `left`, which share what is left of the minutes since `started`."""
        if minutes is None:
            return cls(rounds)
        now = time.monotonic()
        return cls(rounds, now + (started + 60 * minutes - now) / left)

    def __iter__(self) -> Iterator[int]:
        begun = self.clock()
        for turn in range(self.rounds):
            now = self.clock()
            if turn and now + (now - begun) / turn > self.until:
                return
            yield turn
