"""Generated answers compared with their references: the scores of each, from which the metrics are computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from peftlab.data.prompts import Prompt
from peftlab.evaluation.generate import Answer
from peftlab.metrics import METRICS, RowScores, TextSettings
from peftlab.recipe.schema import Texts


@dataclass(frozen=True)
class ScoredTexts:
    """Answers and their scores: `scores` by row as metrics add them up, `rows` as a reader sees each answer.

    `signatures` are the settings of each metric, by its name.
    """

    scores: RowScores
    rows: list[dict[str, Any]]
    signatures: dict[str, str] = field(default_factory=dict)


def score_texts(
    names: Sequence[str], prompts: Sequence[Prompt], answers: Sequence[Answer], settings: Texts
) -> ScoredTexts:
    """Return the scores of answers to prompts by the metrics `names`.

    White space around a text does not count. Raises UsageError for references in which `extract` finds nothing.
    """
    outputs = [answer.text.strip() for answer in answers]
    references = [[text.strip() for text in prompt.references] for prompt in prompts]
    rows: list[dict[str, Any]] = [
        {
            "row": row,
            "prompt": prompt.text,
            "output": answer.text,
            "ended": answer.ended,
            "references": known,
            "scores": {},
        }
        for row, (prompt, answer, known) in enumerate(zip(prompts, answers, references, strict=True))
    ]
    found = ScoredTexts(RowScores(), rows)
    for name in names:
        score = METRICS[name].texts
        assert score is not None, f"{name} is not a metric of texts"
        scored = score(outputs, references, TextSettings(**settings.model_dump()))
        found.scores.sums.update(scored.columns)
        found.signatures[name] = scored.signature
        for row, value in zip(rows, scored.rows, strict=True):
            row["scores"][name] = value
    return found
