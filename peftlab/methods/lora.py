"""LoRA (https://arxiv.org/abs/2106.09685): h = W·x + (alpha/rank)·B·A·x. Trains A and B."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from peftlab.methods.base import Method


class LoRA(Method):
    """Low-rank updates beside frozen projections."""

    title: ClassVar[str] = "LoRA"
    mergeable: ClassVar[bool] = True

    type: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1)
    """Rank r of the update; each target adds r·(n_in + n_out) parameters."""
    alpha: float = Field(16.0, gt=0)
    """Scale of the update: it is multiplied by alpha/rank (alpha/√rank with `rslora`)."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the update's input."""
    targets: Literal["all-linear", "attention"] | tuple[str, ...] = "all-linear"
    """Which projections: every linear layer but the head, the attention's, or names and patterns."""
    bias: Literal["none", "all", "lora-only"] = "none"
    """Which biases train as well."""
    init: Literal["default", "gaussian", "orthogonal", "pissa", "olora"] = "default"
    """How A and B start; `pissa` and `olora` also move the base's principal part into them."""
    rslora: bool = False
    """Scale by alpha/√rank (https://arxiv.org/abs/2312.03732)."""
    dora: bool = False
    """Train a magnitude per output beside the direction (https://arxiv.org/abs/2402.09353)."""
