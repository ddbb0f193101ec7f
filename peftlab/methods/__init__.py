"""The registry of methods: one line each."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from peftlab.methods.adapters import Adapters
from peftlab.methods.base import Method
from peftlab.methods.bitfit import BitFit
from peftlab.methods.full import Full
from peftlab.methods.lora import LoRA
from peftlab.methods.prefix import Prefix
from peftlab.methods.qlora import QLoRA

METHODS: dict[str, type[Method]] = {
    "full": Full,
    "lora": LoRA,
    "qlora": QLoRA,
    "adapters": Adapters,
    "prefix": Prefix,
    "bitfit": BitFit,
}

AnyMethod = Annotated[Full | LoRA | QLoRA | Adapters | Prefix | BitFit, Field(discriminator="type")]

__all__ = ["METHODS", "Adapters", "AnyMethod", "BitFit", "Full", "LoRA", "Method", "Prefix", "QLoRA"]
