"""Models of one task observed on the same held-out rows of a run, to be compared with each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from peftlab.evaluation.agreement import Outputs, collect_outputs, first_rows
from peftlab.runs.bench import Bench


@dataclass
class Observer:
    """The first `rows` held-out rows of a run, on which models compute in `precision`; `part` is where they are from.

    `part` is empty until a model was observed.
    """

    bench: Bench
    rows: int
    precision: torch.dtype = torch.float32
    part: str = ""

    def observe(self, model: nn.Module) -> Outputs:
        """Return a model's outputs on the rows."""
        bench = self.bench
        self.part, rows = first_rows(bench.dataset, self.rows)
        return collect_outputs(
            model,
            rows,
            bench.dataset,
            loss=bench.recipe.task.loss(model),
            world=bench.world,
            precision=self.precision,
            batch_size=bench.batch_size,
        )
