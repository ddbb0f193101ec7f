"""The switches of speed-ups, each of which trains the same model in less time or memory."""

from __future__ import annotations

from typing import Literal

from peftlab.recipe.section import Section

Switch = Literal["auto", "on", "off"]


class Speed(Section):
    loss: Switch = "auto"
    """Loss without logits: the output head is applied to a few hundred positions at a time, gradients included."""
    packing: Switch = "auto"
    """No padding is computed: the rows of a micro-batch lie end to end, and attention never leaves a row."""
    token_cache: Switch = "auto"
    """Rows are tokenised once, and mapped by every later start with the same rows, tokenizer and settings."""
