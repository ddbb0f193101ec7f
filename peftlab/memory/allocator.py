"""What CUDA's caching allocator cannot release beyond what tensors use: a simulation of its pools.

Rules: c10/cuda/CUDACachingAllocator.cpp of torch 2.13, one stream, default settings.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable

from peftlab.memory.constants import (
    ALLOCATION_ROUNDING,
    LARGE_SEGMENT,
    OWN_SEGMENT,
    OWN_SEGMENT_ROUNDING,
    SMALL_ALLOCATION,
    SMALL_SEGMENT,
)


class CachingAllocator:
    """Segments and the blocks in them; `reserved`, `allocated` and `held` in bytes.

    `held` are the segments in which something is allocated: CUDA gives back the others before it runs out of memory.
    """

    def __init__(self) -> None:
        self.reserved = self.allocated = self.held = 0
        self._free: dict[bool, list[tuple[int, int]]] = {True: [], False: []}  # by pool: (size, start)
        self._used: dict[int, tuple[int, int, bool]] = {}  # by owner: (start, size, small)
        self._starts: dict[int, tuple[int, bool]] = {}  # free blocks: start to size and pool
        self._ends: dict[int, int] = {}  # free blocks: end to start
        self._borders: list[int] = [0]  # where segments begin: blocks do not merge across
        self._owners: list[int] = []  # how many blocks of each segment are in use

    def allocate(self, owner: int, size: int) -> None:
        size = max(-(-size // ALLOCATION_ROUNDING), 1) * ALLOCATION_ROUNDING
        small = size <= SMALL_ALLOCATION
        pool = self._free[small]
        place = bisect_left(pool, (size, 0))
        if place == len(pool):
            self._add_segment(size, small)
            place = bisect_left(pool, (size, 0))
        found, start = pool[place]
        self._forget(found, start, small)
        rest = found - size
        if rest >= ALLOCATION_ROUNDING if small else rest > SMALL_ALLOCATION:
            self._remember(rest, start + size, small)
            found = size
        self._used[owner] = (start, found, small)
        self.allocated += found
        self._count(start, 1)

    def release(self, owner: int) -> None:
        start, size, small = self._used.pop(owner)
        self.allocated -= size
        self._count(start, -1)
        end = start + size
        if end in self._starts and not self._is_border(end):
            following = self._starts[end][0]
            self._forget(following, end, small)
            size += following
        if start in self._ends and not self._is_border(start):
            before = self._ends[start]
            length = self._starts[before][0]
            self._forget(length, before, small)
            start, size = before, size + length
        self._remember(size, start, small)

    def _add_segment(self, size: int, small: bool) -> None:
        if small:
            length = SMALL_SEGMENT
        elif size < OWN_SEGMENT:
            length = LARGE_SEGMENT
        else:
            length = -(-size // OWN_SEGMENT_ROUNDING) * OWN_SEGMENT_ROUNDING
        self._remember(length, self.reserved, small)
        self.reserved += length
        self._borders.append(self.reserved)
        self._owners.append(0)

    def _count(self, start: int, change: int) -> None:
        """Note that a block at `start` came into use, or went out of it."""
        segment = bisect_right(self._borders, start) - 1
        length = self._borders[segment + 1] - self._borders[segment]
        before, self._owners[segment] = self._owners[segment], self._owners[segment] + change
        self.held += length * ((before + change > 0) - (before > 0))

    def _is_border(self, place: int) -> bool:
        return self._borders[bisect_left(self._borders, place)] == place

    def _remember(self, size: int, start: int, small: bool) -> None:
        insort(self._free[small], (size, start))
        self._starts[start] = (size, small)
        self._ends[start + size] = start

    def _forget(self, size: int, start: int, small: bool) -> None:
        pool = self._free[small]
        del pool[bisect_left(pool, (size, start))]
        del self._starts[start], self._ends[start + size]


def slack_bytes(events: Iterable[tuple[int, int]]) -> int:
    """Return by how much the most that the allocator could not release exceeds the most that was in use at once.

    `events` are (owner, bytes) in order, bytes negative where the owner frees them.
    """
    allocator, held, used = CachingAllocator(), 0, 0
    for owner, size in events:
        if size > 0:
            allocator.allocate(owner, size)
            held, used = max(held, allocator.held), max(used, allocator.allocated)
        elif size < 0:
            allocator.release(owner)
    return held - used
