"""What of a chat is supervised, and the arguments of its template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class ChatSettings:
    """`supervise` says which of the assistant's turns are supervised, `thinking` whether their thinking part is.

    `arguments` go to the template, at training, evaluation and generation alike. `day` (as 2026-01-31) is what it
    writes as today's. `skip_refused` drops a chat that the template refuses, in place of an error.
    """

    supervise: Literal["all", "last"] = "all"
    thinking: bool = True
    arguments: Mapping[str, Any] = field(default_factory=dict)
    day: str | None = None
    skip_refused: bool = False


def is_supervised(message: Mapping[str, Any]) -> bool:
    """Return whether a turn is the assistant's and no flag (`weight: 0`, `train: false`) excludes it."""
    flags = (message.get("weight"), message.get("train"))
    return message["role"] == "assistant" and all(flag is None or bool(flag) for flag in flags)
