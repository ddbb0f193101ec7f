"""Models of one task observed on the same held-out rows of a run, to be compared with each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from peftlab.evaluation.agreement import Outputs, collect_outputs, compare_outputs, first_rows
from peftlab.metrics import METRICS
from peftlab.reports import AgreementReport
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
            tokenizer=bench.tokenizer,
            columns={column for name in self.metrics for column in METRICS[name].columns},
            threshold=bench.recipe.evaluation.threshold,
        )

    @property
    def metrics(self) -> list[str]:
        """The recipe's metrics that need no generated text."""
        return [name for name in self.bench.recipe.evaluation.metrics if METRICS[name].texts is None]

    def compare(self, first: Outputs, second: Outputs) -> AgreementReport:
        """Return how far the second model's outputs are from the first's."""
        return compare_outputs(first, second, self.metrics)
