"""Which optimisers there are. A new one: its file, and one name in `OPTIMIZERS`; or an entry point of a package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from peftlab.errors import UsageError
from peftlab.optimizers.adamw import AdamW
from peftlab.optimizers.base import Optimizer
from peftlab.optimizers.sgd import SGD
from peftlab.registry import ByType, Registry

OPTIMIZERS = Registry("optimizer", Optimizer, (AdamW, SGD), UsageError)

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


if TYPE_CHECKING:
    AnyOptimizer = Optimizer
else:
    AnyOptimizer = Annotated[Optimizer, ByType(OPTIMIZERS, expand_short_name)]

__all__ = ["OPTIMIZERS", "SHORT_NAMES", "AdamW", "AnyOptimizer", "Optimizer", "SGD"]
