"""Limits in processor seconds that a slow machine meets as well: they are scaled by the time of fixed work.

Processor seconds, because a busy machine has others to serve. They still grow where two processes share a core, its
cache or its clock rate.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

USUAL_SECONDS = 0.05  # of the fixed work, on the machine for which limits are written


def fixed_work_seconds() -> float:
    """Time dictionaries, strings and sorting, as reading and checking use them."""
    started = time.process_time()
    sums: dict[str, int] = {}
    words = []
    for number in range(200_000):
        word = str(number % 997)
        sums[word] = sums.get(word, 0) + number
        words.append(word)
    "".join(words).split("9")
    sorted(sums.items())
    return time.process_time() - started


@contextmanager
def costs_at_most(seconds: float) -> Iterator[None]:
    """Assert that the block takes at most so many processor seconds of this process; a slower machine may take more."""
    started = time.process_time()
    yield
    taken = time.process_time() - started
    if taken >= seconds:
        slowness = max(fixed_work_seconds() for _ in range(3)) / USUAL_SECONDS
        assert taken < seconds * slowness, f"{taken:.2f} s, on a machine {slowness:.1f} times slower than usual"
