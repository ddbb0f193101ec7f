"""Tokens that are kept: a recipe's rows are tokenised once, and mapped by every later start."""

from __future__ import annotations

import os
from typing import ClassVar

from torch import nn

from peftlab.data.cached import TokenOrigin
from peftlab.data.token_store import TokenStore
from peftlab.errors import UsageError
from peftlab.quantities import format_bytes, format_seconds
from peftlab.recipe.schema import Recipe
from peftlab.recipe.speed import Speed
from peftlab.reports import SwitchReport
from peftlab.speed.base import Decline, SpeedUp


class TokenCache(SpeedUp):
    """It acts where rows are read, before there is a model: `report_tokens` says what became of it in a run."""

    name: ClassVar[str] = "token_cache"
    does: ClassVar[str] = "rows are tokenised once and mapped by later starts"
    reads_weights: ClassVar[bool] = False

    def unavailable(self) -> str | None:
        folder = TokenStore().folder
        known = next(place for place in (folder, *folder.parents) if place.exists())
        writable = known.is_dir() and os.access(known, os.W_OK)
        return None if writable else f"{folder} cannot be written; name another folder in PEFTLAB_CACHE"

    def decline(self, model: nn.Module, recipe: Recipe) -> Decline | None:
        return Decline("rows of a stream are tokenised while training takes them") if recipe.data.streaming else None


def token_store(speed: Speed) -> TokenStore | None:
    """Return where a recipe's tokens are kept; None where they are not."""
    return None if speed.token_cache == "off" else TokenStore()


def report_tokens(origin: TokenOrigin, speed: Speed) -> SwitchReport:
    """Return where a run's tokens are from. Raises UsageError where they have to be kept and cannot be."""
    if origin.state == "not kept":
        if speed.token_cache == "on":
            raise UsageError(f"training.speed.token_cache: it is on, but {origin.reason}; set it to auto")
        return SwitchReport(name=TokenCache.name, used=False, reason=origin.reason or "")
    did = {"made": "rows were tokenised and kept", "read": "tokens of an earlier start were mapped"}[origin.state]
    reason = f"{did} ({format_bytes(origin.size)}, {format_seconds(origin.seconds)} s)"
    return SwitchReport(name=TokenCache.name, used=True, reason=reason)
