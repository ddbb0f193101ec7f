"""Budgets as users write them: `trainable=300k`, `trainable=0.5%`, `memory=8GiB`, `stored=2MB`, `seconds=600`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from peftlab.errors import UsageError, nearest
from peftlab.sizes import parse_budget as parse_memory
from peftlab.sizes import parse_size

Kind = Literal["trainable", "memory", "stored", "seconds"]
KINDS: tuple[Kind, ...] = get_args(Kind)
EXAMPLES = "trainable=300k, trainable=0.5%, memory=8GiB, stored=2MB or seconds=600"
NUMBER = re.compile(r"([0-9][0-9_]*(?:\.[0-9]+)?)\s*([A-Za-z%]*)")
COUNTS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
TIMES = {"": 1, "s": 1, "min": 60, "h": 3600}


@dataclass(frozen=True)
class Budget:
    """The limit of one run: `amount` in parameters, bytes or seconds, or as a share of the base's parameters.

    `text` is the budget as the user wrote it.
    """

    kind: Kind
    text: str
    amount: float
    is_share: bool = False

    @property
    def value(self) -> str:
        return self.text.partition("=")[2]

    def __str__(self) -> str:
        return self.text


def parse_budget(text: str) -> Budget:
    """Return the budget of a text such as `trainable=300k`.

    Units: k, M, B or % (of the base's parameters) for parameters; those of bytes, or a GPU's name, for memory; those
    of bytes for stored; s, min or h for seconds. Raises UsageError, one line, for anything else.
    """
    kind, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        raise UsageError(f"{text!r} is not a valid budget; write {EXAMPLES}")
    if kind not in KINDS:
        raise UsageError(f"unknown budget {kind!r}{nearest(kind, KINDS)}; write {EXAMPLES}")
    text = f"{kind}={value}"
    if kind == "memory":
        return Budget(kind, text, parse_memory(value).bytes)
    if kind == "stored":
        return Budget(kind, text, parse_size(value, "stored"))
    if kind == "seconds":
        return Budget(kind, text, _parse_number(kind, value, TIMES, "600, 90s, 10min or 2h"))
    if not value.endswith("%"):
        return Budget(kind, text, _parse_number(kind, value, COUNTS, "300k, 1.5M, 300000 or 0.5%"))
    percent = _parse_number(kind, value, {"%": 1}, "0.5%")
    if percent > 100:
        raise UsageError(f"trainable {value!r} is more than 100 % of the model")
    return Budget(kind, text, percent / 100, is_share=True)


def _parse_number(kind: Kind, value: str, units: dict[str, int], examples: str) -> float:
    found = NUMBER.fullmatch(value)
    if not found or found[2].lower() not in units:
        raise UsageError(f"{kind} {value!r} is not a valid amount; write {examples}")
    number = float(found[1].replace("_", "")) * units[found[2].lower()]
    if number <= 0:
        raise UsageError(f"{kind} {value!r} must be greater than zero")
    return number
