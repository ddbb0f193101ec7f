"""What a speed-up is: a switch that says why it cannot be used on a model, or what it does to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from torch import nn

from peftlab.recipe.schema import Recipe


class Decline(NamedTuple):
    """Why a speed-up is not used: it cannot be, or it can and does not pay."""

    reason: str
    possible: bool = False


DIVIDED = Decline("it reads whole weights, and the launch's strategy divides them among processes")


class SpeedUp(ABC):
    """One switch of `training.speed`: its field's name, and `does`, what it does in one line.

    It changes no parameter, name, `requires_grad` or stored byte. What it changes in a model are forward functions;
    it does that on fake tensors too, so that a plan describes the step that runs.
    """

    name: ClassVar[str]
    does: ClassVar[str]
    reads_head_alone: ClassVar[bool] = False
    """Whether the only weight that it reads is the output head."""
    reads_weights: ClassVar[bool] = True
    """Whether its functions read weights by themselves, so that it cannot be used where each process has a part."""

    def unavailable(self) -> str | None:
        """Return why this machine cannot use it with any recipe; None if it can."""
        return None

    @abstractmethod
    def decline(self, model: nn.Module, recipe: Recipe) -> Decline | None:
        """Return why it is not used on a model with its method; None if it is. The model is not changed."""

    def decline_divided(self, model: nn.Module, recipe: Recipe, whole_head: bool) -> Decline | None:
        """Return the same where processes will divide the weights, all but the head with `whole_head`."""
        return DIVIDED if self.reads_weights else self.decline(model, recipe)

    def apply(self, model: nn.Module, recipe: Recipe) -> str:
        """Change the model's forward functions; return for which part of it where that is not all, else "".

        A speed-up that acts elsewhere in a step changes nothing here.
        """
        return ""

    def remove(self, model: nn.Module) -> None:  # noqa: B027  # not every one changes the model
        """Give the model its own forward functions back."""
