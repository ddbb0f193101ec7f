"""Sections of LoRA, with or without a quantised base, as recipes write them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from peftlab.conversion.sheet import Sheet

ALL_LINEAR = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})
HEADS = ("lm_head", "output", "score", "classifier", "embed_out")
FAMILY_TARGETS = ["q_proj", "v_proj"]
NO_TARGETS = (
    "the file names no projections and PEFT then has its own for each family; method.targets = [q_proj, v_proj], "
    "those of Llama, Mistral and Qwen2: check them for other models"
)
UNFREEZE = "trained with the adapter"
# What a name or a list of names never has: PEFT reads a text with it as one regular expression.
EXPRESSION = re.compile(r"[\\()|^$+?]|\.\*")


def names_of(value: Any) -> list[str]:
    """Return names that a list has, or a text separated by commas or blanks."""
    parts = value.replace(",", " ").split() if isinstance(value, str) else value or ()
    parts = parts if isinstance(parts, list | tuple | dict) else [parts]
    return [str(part).strip("[]'\"") for part in parts if str(part).strip("[]'\"")]


def take_targets(sheet: Sheet, key: str, everything: Sequence[str] = ("all-linear",)) -> None:
    """Take the projections; names that mean all of them become `all-linear`, no names are PEFT's own for a family."""
    value = sheet.get(key)
    names = names_of(value)
    if isinstance(value, str) and EXPRESSION.search(value):
        sheet.set("method.targets", "all-linear")
        sheet.miss(key, "a regular expression; method.targets = all-linear instead: write names or patterns")
    elif not names:
        sheet.set("method.targets", FAMILY_TARGETS)
        sheet.miss(key, NO_TARGETS)
    elif len(names) == 1 and names[0] in everything:
        sheet.take(key, "method.targets", "all-linear")
    else:
        take_names(sheet, key, names)


def take_names(sheet: Sheet, key: str, names: list[str]) -> None:
    """Take projections by name; recipes cannot target the head."""
    heads = [name for name in names if name in HEADS]
    kept = [name for name in dict.fromkeys(names) if name not in HEADS]
    value: Any = "all-linear" if set(kept) == ALL_LINEAR else kept
    if heads:
        sheet.set("method.targets", value)
        text = (
            f"method.targets = {value}; the head ({', '.join(heads)}) gets no update: `method.unfreeze` trains it whole"
        )
        sheet.miss(key, text)
    else:
        note = "the seven of Llama's layers" if value == "all-linear" else ""
        sheet.take(key, "method.targets", value, note)


def take_quantization(sheet: Sheet, bits: int | None, key: str, quant_type: str = "nf4") -> None:
    """Set the method's type by the bits of the base that a key names: 4, 8, or None for plain weights."""
    if bits is None:
        sheet.set("method.type", "lora")
        return
    sheet.set("method.type", "qlora")
    sheet.take(key, "method.quantization", "int8" if bits == 8 else quant_type, "method.type = qlora")


def take_start(sheet: Sheet, key: str) -> None:
    """Take how A and B start, by PEFT's names."""
    value = sheet.get(key)
    if value in ("gaussian", "orthogonal", "pissa", "olora"):
        sheet.take(key, "method.init", value)
    elif value in (True, "default", "true", "True") or not sheet.has(key):
        sheet.ignore(key, "the default")
    else:
        sheet.miss(key, "A and B start as PEFT's default")
