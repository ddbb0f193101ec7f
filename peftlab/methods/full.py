"""Full fine-tuning, of every layer or of the last N: W ← W − η·∇W. Trains the base itself."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from peftlab.methods.base import Method


class Full(Method):
    """Full fine-tuning; with `layers: N` only the last N layers, the final norm and the head train."""

    title: ClassVar[str] = "full fine-tuning"

    type: Literal["full"] = "full"
    layers: Literal["all"] | int = Field("all")
    """`all`, or how many of the last layers train (the classic freeze baseline)."""
