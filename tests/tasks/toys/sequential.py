"""Toy rows: on one process, always in the order of the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from peftlab.data.batches import collate
from peftlab.data.rows import StepCount, longest_rows
from peftlab.data.token_rows import TokenRow
from peftlab.errors import StorageError


@dataclass
class InOrder:
    rows: Sequence[TokenRow]
    pad_id: int
    per_step: int

    def numbers(self, step: int) -> list[list[int]]:
        return [[place % len(self.rows) for place in range((step - 1) * self.per_step, step * self.per_step)]]

    def batches(self, step: int):
        return [collate([self.rows[i] for i in numbers], self.pad_id) for numbers in self.numbers(step)]

    def count(self, step: int) -> StepCount:
        rows = [self.rows[i] for numbers in self.numbers(step) for i in numbers]
        return StepCount(sum(row.supervised for row in rows), sum(len(row.input_ids) for row in rows))

    def longest(self) -> InOrder:
        return replace(self, rows=longest_rows(self.rows, self.per_step))

    def state(self, step: int = 0) -> dict[str, Any]:
        return {"order": "of the file"}

    def restore(self, state: dict[str, Any]) -> None:
        if state != self.state():
            raise StorageError("another order")
