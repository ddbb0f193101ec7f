"""Which rows each optimiser step takes, on every process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from peftlab.data.batches import collate, rows_for_micro_batch
from peftlab.data.tokens import TokenRow


@dataclass
class StepRows:
    """Which rows each step takes, as a pure function of seed, step, micro-batch and process.

    `rows` are all tokenised training rows; every process holds all of them, so that the number of tokens
    of a step on all processes is known without communication.
    """

    rows: Sequence[TokenRow]
    pad_id: int
    batch_size: int
    accumulation: int
    process: int
    processes: int
    seed: int

    @property
    def per_step(self) -> int:
        return self.batch_size * self.accumulation * self.processes

    def indices(self, step: int, micro: int, process: int) -> list[int]:
        """Return the rows of one micro-batch of one process; steps count from 1."""
        return rows_for_micro_batch(
            step - 1,
            micro,
            batch_size=self.batch_size,
            accumulation=self.accumulation,
            process=process,
            processes=self.processes,
            seed=self.seed,
            n=len(self.rows),
        )

    def batch(self, step: int, micro: int) -> dict[str, torch.Tensor]:
        return collate([self.rows[i] for i in self.indices(step, micro, self.process)], self.pad_id)

    def count(self, step: int) -> tuple[int, int]:
        """Return what a whole step, on all processes, is a mean over (supervised tokens or rows), and its tokens."""
        micros = ((micro, process) for micro in range(self.accumulation) for process in range(self.processes))
        rows = [self.rows[i] for micro, process in micros for i in self.indices(step, micro, process)]
        return sum(row.supervised for row in rows), sum(len(row.input_ids) for row in rows)
