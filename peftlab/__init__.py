"""peftlab: one bench for parameter-efficient fine-tuning."""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peftlab.methods import Adapters, BitFit, Full, LoRA, Prefix, QLoRA, load_weights
    from peftlab.parameters.report import parameter_report
    from peftlab.recipe import Recipe, load_recipe
    from peftlab.runs.callback import PeftlabCallback
    from peftlab.runs.run import train

__version__ = "0.2.0"

# It advises an optional package as it is imported, which other libraries do before anybody can stop it.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

__all__ = [
    "Adapters",
    "BitFit",
    "Full",
    "LoRA",
    "PeftlabCallback",
    "Prefix",
    "QLoRA",
    "Recipe",
    "__version__",
    "load_recipe",
    "load_weights",
    "parameter_report",
    "train",
]

# Names are looked up on first use, so that `import peftlab` and `peftlab --help` load no torch.
HOMES = {
    "peftlab.methods": ("Adapters", "BitFit", "Full", "LoRA", "Prefix", "QLoRA", "load_weights"),
    "peftlab.recipe": ("Recipe", "load_recipe"),
    "peftlab.parameters.report": ("parameter_report",),
    "peftlab.runs.callback": ("PeftlabCallback",),
    "peftlab.runs.run": ("train",),
}


def __getattr__(name: str) -> Any:
    for module, names in HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'peftlab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
