"""What PEFT's `adapter_config.json` says of trained weights, exactly; a key without a counterpart is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftlab.conversion.peft import PEFT
from peftlab.conversion.sheet import Fate, Line, Sheet, is_off, plain
from peftlab.errors import MethodError, StorageError, UsageError, one_line
from peftlab.files import parse_json, read_text

CONFIG = "adapter_config.json"
# The tensors say exactly which modules were trained, and how.
SAID_BY_TENSORS = ("target_modules", "layers_to_transform", "layers_pattern", "exclude_modules", "modules_to_save")
# Ways in which A and B began that leave the base as it is: trained weights have replaced them.
STARTS = (False, "eva")
REMEDY = "use the folder with PEFT, or merge it there (merge_and_unload) and import the merged model"


@dataclass(frozen=True)
class AdapterConfig:
    """The sections of a recipe that a PEFT folder decides: its `model` and its `method` without what tensors say.

    `saved_modules` are PEFT's `modules_to_save`.
    """

    model: dict[str, Any]
    method: dict[str, Any]
    saved_modules: tuple[str, ...]


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Return what a PEFT folder says of its weights.

    Raises StorageError for a file that cannot be read, MethodError with the key of a setting without a counterpart.
    """
    path = folder / CONFIG
    values = parse_json(path, read_text(path))
    if not isinstance(values, dict):
        raise StorageError(f"{path}: is not an object of settings")
    sheet = Sheet(values)
    try:
        PEFT.fill(sheet)
    except UsageError as error:
        raise MethodError(f"{path}: {error}; {REMEDY}") from None
    sheet.close()
    for line in sheet.lines:
        if _is_lost(line):
            raise MethodError(
                f"{path}: {line.key}: {one_line(plain(line.value), 60)} has no counterpart in peftlab, so that the "
                f"imported run would compute something else; {REMEDY}"
            )
    method = {name: value for name, value in sheet.recipe["method"].items() if name not in ("targets", "unfreeze")}
    saved = values.get("modules_to_save") or ()
    return AdapterConfig(sheet.recipe.get("model", {}), method, (saved,) if isinstance(saved, str) else tuple(saved))


def has_adapter_config(folder: Path) -> bool:
    """Return whether a folder is one that PEFT wrote."""
    return (folder / CONFIG).is_file()


def _is_lost(line: Line) -> bool:
    if line.key in SAID_BY_TENSORS or line.fate not in (Fate.NO_COUNTERPART, Fate.UNKNOWN):
        return False
    if line.key == "init_lora_weights":
        return line.value not in STARTS
    return not is_off(line.value)
