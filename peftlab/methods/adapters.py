"""Bottleneck adapters (https://arxiv.org/abs/1902.00751): h ← h + U·f(D·h + d) + u. Trains D, d, U, u."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from peftlab.methods.base import Method


class Adapters(Method):
    """Small bottlenecks inside every layer, near the identity at the start."""

    title: ClassVar[str] = "bottleneck adapters"

    type: Literal["adapters"] = "adapters"
    bottleneck: int | None = Field(None, ge=1)
    """Width r of the bottleneck: each adapter has 2·d·r + r + d parameters."""
    reduction_factor: float | None = Field(None, gt=0)
    """The width as hidden size divided by this; exactly one of the two is given (16 if neither)."""
    placement: Literal["houlsby", "pfeiffer", "parallel"] = "houlsby"
    """After attention and feed-forward, after feed-forward only (https://arxiv.org/abs/2005.00247), or beside
    the feed-forward (https://arxiv.org/abs/2110.04366)."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "gelu"
    """The non-linearity f."""
    init: Literal["zero", "near-identity"] = "zero"
    """Start of U: zero (exactly the base model) or normal with a standard deviation of 1e-3, as Houlsby's."""
    train_norms: bool = False
    """Train the normalisation layers as well, as Houlsby et al. do."""
    modules: tuple[str, ...] = ()
    """Patterns over module names whose output is adapted, for architectures that peftlab does not know."""
