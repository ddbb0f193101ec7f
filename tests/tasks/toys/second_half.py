"""A toy task and its loss: the second half of a row's tokens, with smoothed labels."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional

from peftlab.data.token_rows import IGNORED, TARGETS
from peftlab.losses.cross_entropy import PositionCrossEntropy
from peftlab.losses.selection import find_head
from peftlab.tasks.causal_lm import CausalLM

SMOOTHING = 0.2
CHUNK = 7


class Smoothed(PositionCrossEntropy):
    """Cross-entropy with smoothed labels, a few targets at a time; `seen` lists calls and whether a plan made them."""

    seen: ClassVar[list[tuple[str, bool]]] = []

    def total(self, model, batch) -> torch.Tensor:
        scores = self.scores(model, batch)
        Smoothed.seen.append(("total", is_planned(batch)))
        parts = zip(scores.float().split(CHUNK), batch[TARGETS].split(CHUNK), strict=True)
        return sum(functional.cross_entropy(*part, reduction="sum", label_smoothing=SMOOTHING) for part in parts)

    def rows(self, model, batch, counts):
        Smoothed.seen.append(("rows", is_planned(batch)))
        return super().rows(model, batch, counts)


def is_planned(batch) -> bool:
    """Whether the batch is one of the memory plan, which has sizes and no values."""
    return type(batch["input_ids"]).__name__ == "FakeTensor"


class SecondHalf(CausalLM):
    name: ClassVar[str] = "second-half"
    title: ClassVar[str] = "the second half of texts"

    def loss(self, model):
        return Smoothed(find_head(model), predicts=False)

    def tokenise(self, examples, how):
        found = super().tokenise(examples, how)
        return found._replace(rows=[replace(row, labels=ignore_first_half(row.labels)) for row in found.rows])


def ignore_first_half(labels: np.ndarray) -> np.ndarray:
    return np.where(np.arange(len(labels)) < len(labels) // 2, IGNORED, labels).astype(np.int32)
