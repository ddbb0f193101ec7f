"""Which methods there are: the built-in ones, those of installed packages, and what a program registers itself.

A package offers a method by an entry point of the group `peftlab.methods`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from peftlab.errors import MethodError
from peftlab.methods.adapters import Adapters
from peftlab.methods.base import Method
from peftlab.methods.bitfit import BitFit
from peftlab.methods.full import Full
from peftlab.methods.lora import LoRA
from peftlab.methods.prefix import Prefix
from peftlab.methods.qlora import QLoRA
from peftlab.methods.storage import read_saved
from peftlab.registry import ByType, Registry

BUILT_IN: tuple[type[Method], ...] = (Full, LoRA, QLoRA, Adapters, Prefix, BitFit)
METHODS = Registry("method", Method, BUILT_IN, MethodError)

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    AnyMethod = Method
else:
    AnyMethod = Annotated[Method, ByType(METHODS)]


def load_weights(model: PreTrainedModel, place: str | Path) -> nn.Module:
    """Return the base `model` with the trained weights in a folder that a run saved, or in a repository of the hub.

    The method is the one that the folder names. Raises StorageError where weights or base do not fit.
    """
    from huggingface_hub import snapshot_download

    folder = Path(place) if Path(place).is_dir() else Path(snapshot_download(str(place)))
    saved = read_saved(folder).method
    return METHODS[saved["type"]].model_validate(saved).load(model, folder)


def register(method: type[Method]) -> type[Method]:
    """Make a method known in this process, and return it: `@register` before a class does it.

    Raises MethodError for a class that is not a complete method and for a `type` that is taken.
    """
    METHODS.add(method)
    return method
