"""Models of one task observed on the same held-out rows of a run, to be compared with each other."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from peftlab.evaluation.agreement import Outputs, collect_outputs, compare_outputs, first_rows
from peftlab.evaluation.evaluate import score_answers
from peftlab.metrics import METRICS, RowScores
from peftlab.reports import AgreementReport
from peftlab.runs.bench import Bench

# Prompts that a model answers, at most: an answer takes as many passes as it has tokens.
ANSWERED = 16


@dataclass
class Observer:
    """The first `rows` held-out rows of a run, on which models compute in `precision`; `part` is where they are from.

    `part` is empty until a model was observed.
    """

    bench: Bench
    rows: int
    precision: torch.dtype = torch.float32
    part: str = ""

    def observe(self, model: nn.Module, *, answers: bool = True) -> Outputs:
        """Return a model's outputs on the rows, with the scores of its answers where the recipe's metrics need them."""
        bench = self.bench
        self.part, rows = first_rows(bench.dataset, self.rows)
        outputs = collect_outputs(
            model,
            rows,
            bench.dataset,
            loss=bench.recipe.task.loss(model),
            world=bench.world,
            precision=self.precision,
            batch_size=bench.batch_size,
            tokenizer=bench.tokenizer,
            columns={column for name in self._named(of_texts=False) for column in METRICS[name].columns},
            threshold=bench.recipe.evaluation.threshold,
        )
        return replace(outputs, texts=self._answer(model)) if answers else outputs

    @property
    def metrics(self) -> tuple[str, ...]:
        return self.bench.recipe.evaluation.metrics

    def _named(self, *, of_texts: bool) -> list[str]:
        """Return the recipe's metrics of generated texts, or the others."""
        return [name for name in self.metrics if (METRICS[name].texts is not None) is of_texts]

    def _answer(self, model: nn.Module) -> RowScores | None:
        """Return the scores of a model's answers to the first prompts; None without such metrics or prompts."""
        bench, settings = self.bench, self.bench.recipe.evaluation
        parts = {"evaluation": bench.dataset.prompts, "test": bench.dataset.test_prompts}
        prompts = parts.get(self.part, [])[: min(self.rows, settings.generation.rows, ANSWERED)]
        names = self._named(of_texts=True)
        if not names or not prompts:
            return None
        return score_answers(
            model,
            names,
            prompts,
            bench.dataset,
            settings,
            tokenizer=bench.tokenizer,
            world=bench.world,
            precision=self.precision,
            batch_size=bench.batch_size,
            prompting=bench.recipe.method.prompting,
        ).scores

    def compare(self, first: Outputs, second: Outputs) -> AgreementReport:
        """Return how far the second model's outputs are from the first's."""
        return compare_outputs(first, second, self.metrics)
