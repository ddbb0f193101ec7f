"""Fine-tuning methods, one a file. A new one: its file, and one line in `registry.BUILT_IN` or an entry point."""

from __future__ import annotations

from peftlab.methods.adapters import Adapters
from peftlab.methods.base import Method, Problems, Prompting, Sizes
from peftlab.methods.bitfit import BitFit
from peftlab.methods.full import Full
from peftlab.methods.lora import LoRA
from peftlab.methods.prefix import Prefix
from peftlab.methods.qlora import QLoRA
from peftlab.methods.registry import METHODS, AnyMethod, load_weights, register

__all__ = [
    "METHODS",
    "Adapters",
    "AnyMethod",
    "BitFit",
    "Full",
    "LoRA",
    "Method",
    "Prefix",
    "Problems",
    "Prompting",
    "QLoRA",
    "Sizes",
    "load_weights",
    "register",
]
