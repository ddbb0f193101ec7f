"""Applies a recipe's speed-ups to a model with its method: the one place that runs, trials and plans pass through."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from peftlab.errors import UsageError
from peftlab.recipe.schema import Recipe
from peftlab.recipe.speed import Speed
from peftlab.reports import SpeedReport, SwitchReport
from peftlab.speed.activation import Activations
from peftlab.speed.base import Decline, SpeedUp
from peftlab.speed.compiling import Compiling
from peftlab.speed.feed_forward import FeedForwards
from peftlab.speed.liger import LigerLoss
from peftlab.speed.lora_linear import LoraLinears
from peftlab.speed.loss import LossWithoutLogits
from peftlab.speed.norm import RMSNorms
from peftlab.speed.packing import Packing
from peftlab.speed.rotary import Rotations
from peftlab.speed.token_cache import TokenCache
from peftlab.speed.varlen import Varlen

SPEED_UPS: tuple[SpeedUp, ...] = (
    LossWithoutLogits(),
    LigerLoss(),
    Packing(),
    Varlen(),
    LoraLinears(),
    FeedForwards(),
    Activations(),
    RMSNorms(),
    Rotations(),
    Compiling(),
    TokenCache(),
)
"""In the order in which they are applied, one for each field of `training.speed`."""


def speed_up(model: nn.Module, recipe: Recipe, divided: bool = False, *, whole_head: bool = False) -> SpeedReport:
    """Apply the recipe's speed-ups to `model`, in place, and no others; return what became of each switch.

    `divided` says that processes will divide the weights, all but the head with `whole_head`. Raises UsageError for a
    switch that is on and cannot be.
    """
    remove_speed_ups(model)

    def declined(one: SpeedUp) -> Decline | None:
        return one.decline_divided(model, recipe, whole_head) if divided else one.decline(model, recipe)

    return SpeedReport(switches=[_use(one, model, recipe, declined) for one in SPEED_UPS])


def as_divided(recipe: Recipe, whole_head: bool = False) -> Recipe:
    """Return the recipe with the switches off that cannot be used where processes divide the weights.

    With a `whole_head` the loss still needs no logits.
    """
    off = {one.name: "off" for one in SPEED_UPS if one.reads_weights and not (whole_head and one.reads_head_alone)}
    speed = recipe.training.speed.model_copy(update=off)
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"speed": speed})})


def remove_speed_ups(model: nn.Module) -> None:
    """Give `model` its own forward functions back."""
    for one in SPEED_UPS:
        one.remove(model)


def _use(one: SpeedUp, model: nn.Module, recipe: Recipe, ask: Callable[[SpeedUp], Decline | None]) -> SwitchReport:
    switch = getattr(recipe.training.speed, one.name)
    if switch == "off":
        return SwitchReport(name=one.name, used=False, reason="off in the recipe")
    declined = ask(one)
    if declined is None or switch == "on" and declined.possible:
        return SwitchReport(name=one.name, used=True, reason=one.does, part=one.apply(model, recipe))
    if switch == "on":
        raise UsageError(
            f"training.speed.{one.name}: it is on, but {declined.reason}; set training.speed.{one.name}=auto"
        )
    return SwitchReport(name=one.name, used=False, reason=declined.reason)


def describe_speed_ups() -> dict[str, str]:
    """Return for each switch what it does on this machine, or why it cannot, for `peftlab doctor`."""
    assert {one.name for one in SPEED_UPS} == set(Speed.model_fields), "a switch of training.speed has no speed-up"
    return {one.name: f"no: {why}" if (why := one.unavailable()) else one.does for one in SPEED_UPS}
