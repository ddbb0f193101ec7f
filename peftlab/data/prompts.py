"""Prompts of held-out rows: what text is generated from, and every answer that would be right."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Prompt:
    """What text is generated from, and the texts that would be right (all rows with this same prompt).

    `lead` is how many tokens at the beginning a cut keeps (the opening token, and the system text of a chat), `cut`
    how many tokens `data.max_length` removed.
    """

    text: str
    input_ids: list[int]
    references: tuple[str, ...]
    lead: int = 0
    cut: int = 0


def merge_prompts(prompts: Iterable[Prompt]) -> list[Prompt]:
    """Return the distinct prompts in their order, each with all its references.

    Prompts that are equal only because they were cut are different ones, with references of their own.
    """
    merged: dict[tuple[tuple[int, ...], str], Prompt] = {}
    for prompt in prompts:
        key = tuple(prompt.input_ids), prompt.text if prompt.cut else ""
        known = merged[key].references if key in merged else ()
        merged[key] = replace(merged.get(key, prompt), references=known + prompt.references)
    return list(merged.values())
