"""Examples as rows, with the settings of a recipe's data that a test is about."""

from __future__ import annotations

from collections import Counter

from peftlab.recipe.schema import Data
from peftlab.tasks import TASKS
from peftlab.tasks.base import Tokenised, Tokenising


def tokenise(examples, tokenizer, counts=None, *, max_length=64, labels=(), prompts=False, **fields) -> Tokenised:
    """Return what the task makes of examples of its format; `counts` gains what happened to them."""
    task, layout = next(
        (task, one) for task in TASKS.values() for one in task.formats if isinstance(examples[0], one.example)
    )
    section = Data(train="-", format=layout.name, max_length=max_length, **fields)
    return task.tokenise(
        examples, Tokenising(tokenizer, section, layout, Counter() if counts is None else counts, labels, prompts)
    )
