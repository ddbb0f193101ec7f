"""Sequences whose values are made when they are asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar, overload

Value = TypeVar("Value", covariant=True)


class LazySequence(Sequence[Value]):
    """A sequence that keeps none of its values: a subclass makes the one at a place, from 0, when it is asked for."""

    @abstractmethod
    def make(self, place: int) -> Value:
        """Return the value at `place`, which is below the length and not negative."""

    @overload
    def __getitem__(self, index: int) -> Value: ...
    @overload
    def __getitem__(self, index: slice) -> list[Value]: ...
    def __getitem__(self, index: int | slice) -> Any:
        """Return the value at an index, or a list of those of a slice. Raises IndexError."""
        if isinstance(index, slice):
            return [self.make(place) for place in range(*index.indices(len(self)))]
        return self.make(range(len(self))[index])
