"""The loss without logits: which loss a recipe's steps and evaluations use."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from peftlab.losses.after_head import UnknownHeadError
from peftlab.losses.base import Loss
from peftlab.losses.without_logits import without_logits
from peftlab.recipe.schema import Recipe
from peftlab.recipe.speed import Speed
from peftlab.speed.base import Decline, SpeedUp
from peftlab.tasks import Task


class LossWithoutLogits(SpeedUp):
    name: ClassVar[str] = "loss"
    reads_head_alone: ClassVar[bool] = True
    does: ClassVar[str] = "the head's logits are made for some hundred positions at a time, with their gradients"

    def decline(self, model: nn.Module, recipe: Recipe) -> Decline | None:
        return self._decline(model, recipe, divided=False)

    def decline_divided(self, model: nn.Module, recipe: Recipe, whole_head: bool) -> Decline | None:
        if not whole_head:
            return super().decline_divided(model, recipe, whole_head)
        return self._decline(model, recipe, divided=True)

    def _decline(self, model: nn.Module, recipe: Recipe, divided: bool) -> Decline | None:
        try:
            without_logits(recipe.task.loss(model), model, divided=divided)
        except UnknownHeadError as error:
            return Decline(str(error))
        return None


def loss_of(task: Task, speed: Speed, model: nn.Module, device: str = "cpu") -> Loss:
    """Return the loss of steps and evaluations of `model`: the task's, without logits where that can be.

    `device` is the type of device that they run on; a plan's tensors are elsewhere.
    """
    plain = task.loss(model)
    if speed.loss == "off":
        return plain
    try:
        return without_logits(plain, model, device, liger=speed.liger != "off")
    except UnknownHeadError:  # `speed_up` has reported it
        return plain
