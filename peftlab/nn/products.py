"""Matrix products that are scaled or added in place, without a pass of their own for it."""

from __future__ import annotations

import torch
from torch import Tensor


def add_product(into: Tensor | None, left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
    """Return `into` plus `scale` times a product, added in place; that alone where there is no `into`."""
    if into is None:
        return scaled_product(left, right, scale)
    if into.dtype == left.dtype == right.dtype:
        return into.addmm_(left, right, alpha=scale)
    return into.add_(left @ right, alpha=scale)


def scaled_product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """Return `scale` times a product."""
    return left @ right if scale == 1 else torch.addmm(left.new_empty(()), left, right, beta=0, alpha=scale)
