"""The registry of optimisers: one line each."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from peftlab.optimizers.adamw import AdamW
from peftlab.optimizers.base import Optimizer
from peftlab.optimizers.sgd import SGD

OPTIMIZERS: dict[str, type[Optimizer]] = {
    "adamw": AdamW,
    "sgd": SGD,
}

# Names that stand for a whole section: recipes and records of version 0.1.0 have them.
SHORT_NAMES: dict[str, dict[str, Any]] = {
    "adamw_8bit": {"type": "adamw", "bits": 8},
    "paged_adamw": {"type": "adamw", "paged": True},
    "paged_adamw_8bit": {"type": "adamw", "bits": 8, "paged": True},
}


def expand_short_name(value: Any) -> Any:
    """Return the section that a bare name such as `adamw_8bit` stands for; a section without a type is AdamW's."""
    if isinstance(value, str):
        return SHORT_NAMES.get(value, {"type": value})
    return {"type": "adamw", **value} if isinstance(value, dict) else value


AnyOptimizer = Annotated[AdamW | SGD, Field(discriminator="type"), BeforeValidator(expand_short_name)]

__all__ = ["OPTIMIZERS", "SHORT_NAMES", "AdamW", "AnyOptimizer", "Optimizer", "SGD"]
