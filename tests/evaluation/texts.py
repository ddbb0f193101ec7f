"""Generated texts alone, of the answers that `generate_answers` returns."""

from __future__ import annotations

from typing import Any

from peftlab.evaluation.generate import generate_answers


def generate_text(*arguments: Any, **settings: Any) -> list[str]:
    return [answer.text for answer in generate_answers(*arguments, **settings)]
