"""Models of one task observed on the same held-out rows of a run, to be compared with each other."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from peftlab.evaluation.agreement import Outputs, collect_outputs, compare_outputs, first_rows
from peftlab.evaluation.generate import answer_prompts
from peftlab.evaluation.texts import score_texts
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
        bench, needed = (
            self.bench,
            {name: METRICS[name].columns for name in self.metrics if not self._is_of_texts(name)},
        )
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
            columns={column for columns in needed.values() for column in columns},
            threshold=bench.recipe.evaluation.threshold,
        )
        return replace(outputs, texts=self._answer(model)) if answers else outputs

    @property
    def metrics(self) -> tuple[str, ...]:
        return self.bench.recipe.evaluation.metrics

    @staticmethod
    def _is_of_texts(name: str) -> bool:
        return METRICS[name].texts is not None

    def _answer(self, model: nn.Module) -> RowScores | None:
        """Return the scores of a model's answers to the first prompts; None without such metrics or prompts."""
        bench, settings = self.bench, self.bench.recipe.evaluation
        parts = {"evaluation": bench.dataset.prompts, "test": bench.dataset.test_prompts}
        prompts = parts.get(self.part, [])[: min(self.rows, settings.generation.rows, ANSWERED)]
        names = [name for name in self.metrics if self._is_of_texts(name)]
        if not names or not prompts:
            return None
        answers = answer_prompts(
            model,
            bench.tokenizer,
            prompts,
            bench.dataset,
            settings,
            batch_size=bench.batch_size,
            prompting=bench.recipe.method.prompting,
            autocast=lambda: bench.world.autocast(self.precision),
        )
        return score_texts(names, prompts, answers, settings.texts).scores

    def compare(self, first: Outputs, second: Outputs) -> AgreementReport:
        """Return how far the second model's outputs are from the first's."""
        return compare_outputs(first, second, self.metrics)
