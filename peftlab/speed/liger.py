"""Liger's kernel for the loss without logits, where it is installed."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from peftlab.losses.after_head import UnknownHeadError
from peftlab.losses.liger import what_is_missing, why_no_liger
from peftlab.losses.without_logits import without_logits
from peftlab.recipe.schema import Recipe
from peftlab.speed.base import Decline
from peftlab.speed.loss import LossWithoutLogits
from peftlab.world.dtypes import autocast, resolve_types
from peftlab.world.hardware import has_cuda


class LigerLoss(LossWithoutLogits):
    name: ClassVar[str] = "liger"
    does: ClassVar[str] = "Liger's kernel computes the loss without logits"

    def unavailable(self) -> str | None:
        return what_is_missing() if has_cuda() else "it needs CUDA"

    def _decline(self, model: nn.Module, recipe: Recipe, divided: bool) -> Decline | None:
        if recipe.training.speed.loss == "off":
            return Decline("loss is off, which it computes")
        try:
            loss = without_logits(recipe.task.loss(model), model, divided=divided)
        except UnknownHeadError:
            return Decline("the loss has all logits")
        if not loss.head.weight.is_cuda:  # a plan's weights are on no device, which has no autocast
            return Decline("it needs CUDA")
        types = resolve_types(recipe.model.dtype, recipe.training.precision, loss.head.weight.device)
        with autocast(types.computation, loss.head.weight.device):
            reason = why_no_liger(loss.head, loss.after)
        return None if reason is None else Decline(reason)
