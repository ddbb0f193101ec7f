"""BitFit (https://arxiv.org/abs/2106.10199): only bias terms train."""

from __future__ import annotations

from typing import ClassVar, Literal

from peftlab.methods.base import Method


class BitFit(Method):
    """Bias-term fine-tuning."""

    title: ClassVar[str] = "BitFit"

    type: Literal["bitfit"] = "bitfit"
    terms: Literal["all", "subset"] = "all"
    """All biases, or the paper's subset: the query's and the second feed-forward's."""
    norms: bool = False
    """Train the normalisation layers' scales too (their biases are bias terms anyway)."""
    add_missing: bool = False
    """Give linear layers without a bias a zero one to train."""
