"""Prefix tuning (https://arxiv.org/abs/2101.00190) and prompt tuning (https://arxiv.org/abs/2104.08691).

Keys and values [P_k; K], [P_v; V] in every layer, or [P; E] at the input. Trains the P.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from peftlab.methods.base import Method


class Prefix(Method):
    """Trained virtual tokens before the input; the base stays as it is."""

    title: ClassVar[str] = "prefix tuning"
    supports_gradient_checkpointing: ClassVar[bool] = False

    type: Literal["prefix"] = "prefix"
    kind: Literal["prefix", "prompt"] = "prefix"
    """`prefix`: keys and values in every layer; `prompt`: embeddings at the input only."""
    length: int = Field(20, ge=1)
    """Number of virtual tokens P."""
    projection: bool = False
    """Train the prefix through a two-layer network, which is dropped when saved."""
    projection_dim: int | None = Field(None, ge=1)
    """Hidden width of that network (default: the model's hidden size)."""

    @property
    def starts_as_base(self) -> bool:
        return False
