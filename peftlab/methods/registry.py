"""Which methods there are: the built-in ones, those of installed packages, and what a program registers itself.

A package offers a method by an entry point of the group `peftlab.methods`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from peftlab.errors import MethodError
from peftlab.methods.adapters import Adapters
from peftlab.methods.base import Method
from peftlab.methods.bitfit import BitFit
from peftlab.methods.full import Full
from peftlab.methods.lora import LoRA
from peftlab.methods.prefix import Prefix
from peftlab.methods.qlora import QLoRA
from peftlab.registry import ByType, Registry

BUILT_IN: tuple[type[Method], ...] = (Full, LoRA, QLoRA, Adapters, Prefix, BitFit)
METHODS = Registry("method", Method, BUILT_IN, MethodError)

if TYPE_CHECKING:
    AnyMethod = Method
else:
    AnyMethod = Annotated[Method, ByType(METHODS)]


def register(method: type[Method]) -> type[Method]:
    """Make a method known in this process, and return it: `@register` before a class does it.

    Raises MethodError for a class that is not a complete method and for a `type` that is taken.
    """
    METHODS.add(method)
    return method
