"""Budgets as users write them: `trainable=300k`, `memory=8GiB`, `seconds=600`, or several that all must be met."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from math import exp, isfinite, log
from typing import Literal, get_args

from peftlab.errors import UsageError, nearest
from peftlab.sizes import parse_budget as parse_memory
from peftlab.sizes import parse_size

Kind = Literal["trainable", "memory", "stored", "seconds", "operations"]
KINDS: tuple[Kind, ...] = get_args(Kind)
EXAMPLES = "trainable=300k, trainable=0.5%, memory=8GiB, stored=2MB, seconds=600 or operations=3P"
NUMBER = re.compile(r"([0-9][0-9_]*(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)\s*([A-Za-z%]*)")
GROUPED = re.compile(r"[0-9]+(?:,[0-9]+)+")  # 1,000 or 8,5
COUNTS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
TIMES = {"": 1, "s": 1, "min": 60, "h": 3600}
OPERATIONS = {"": 1, "g": 10**9, "t": 10**12, "p": 10**15, "e": 10**18, "z": 10**21}
BYTES = {"TiB": 2**40, "GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "B": 1}
# What users call a kind of budget, and its name.
CALLED = {
    "parameters": "trainable", "params": "trainable", "vram": "memory", "ram": "memory", "gpu": "memory",
    "size": "stored", "disk": "stored", "time": "seconds", "minutes": "seconds", "hours": "seconds",
    "flops": "operations", "compute": "operations",
}  # fmt: skip
# What is measured of every variant of a comparison, and cannot be sized for.
NOT_SIZED = {
    "latency": "merged into the base, any size is as fast as the base, and unmerged, usual sizes change it less than "
    "two measurements differ; `peftlab compare` shows each variant's latency",
}
FRONTIER_POINTS = 5
MOST_POINTS = 100
FRONTIER_EXAMPLES = "trainable=10k..10M, stored=1MB..100MB or trainable=10k..10M:7 (points)"


@dataclass(frozen=True)
class Budget:
    """The limit of one run: `amount` in parameters, bytes, seconds or operations, or a share of the base's parameters.

    `text` is the budget as the user wrote it; `others` are limits that the run must stay within too.
    """

    kind: Kind
    text: str
    amount: float
    is_share: bool = False
    others: tuple[Budget, ...] = ()

    @property
    def value(self) -> str:
        return self.text.partition("=")[2]

    def __str__(self) -> str:
        return ",".join([self.text, *(other.text for other in self.others)])


def parse_budget(text: str) -> Budget:
    """Return the budget of a text such as `trainable=300k`, or of several with commas, which all must be met.

    Units: k, M, B or % (of the base's parameters) for parameters; those of bytes, or a GPU's name, for memory; those
    of bytes for stored; s, min or h for seconds; G, T, P or E for operations. Raises UsageError, one line, for
    anything else.
    """
    if found := GROUPED.search(text):
        raise UsageError(f"{text!r}: a comma separates budgets; write {found[0]} without one, or with a point")
    first, *others = (_parse_one(part) for part in text.split(","))
    kinds = [one.kind for one in (first, *others)]
    if len(set(kinds)) < len(kinds):
        raise UsageError(f"{text!r} has two budgets of one kind; give one limit of each")
    return replace(first, others=tuple(others))


def parse_frontier(text: str) -> tuple[str, ...]:
    """Return the budgets of `trainable=10k..10M`: amounts between its ends, each as many times the one before.

    Five, or as many as `:N` at the end says. Raises UsageError.
    """
    if "," in text:
        raise UsageError(f"{text!r}: a frontier has one kind of budget, without commas; write {FRONTIER_EXAMPLES}")
    kind, _, ends = (part.strip() for part in text.partition("="))
    found = re.fullmatch(r"(.+?)\.\.(.+?)(?::(\d+))?", ends)
    if not found:
        raise UsageError(f"{text!r} is not a valid frontier; write {FRONTIER_EXAMPLES}")
    low, high = (_parse_one(f"{kind}={end}") for end in found.groups()[:2])
    points = int(found[3] or FRONTIER_POINTS)
    if points > MOST_POINTS:
        raise UsageError(f"{text!r}: every point is a training; ask for at most {MOST_POINTS}")
    if low.is_share != high.is_share:
        raise UsageError(f"{text!r}: one end is a share and the other is not; write both with % or without")
    if not low.amount < high.amount or points < 2:
        raise UsageError(f"{text!r} must go from a smaller to a larger amount in at least 2 points")
    steps = [index / (points - 1) for index in range(points)]
    amounts = [exp(log(low.amount) + step * log(high.amount / low.amount)) for step in steps]
    return (low.text, *(_write(low, amount) for amount in amounts[1:-1]), high.text)


def _write(like: Budget, amount: float) -> str:
    """Return a budget of this amount, of the kind of another, with three digits and a unit that can be read back."""
    if like.is_share:
        return f"{like.kind}={100 * amount:.3g}%"
    if like.kind in ("memory", "stored"):
        unit, size = next((unit, size) for unit, size in BYTES.items() if amount >= size or size == 1)
        return f"{like.kind}={amount / size:.4g}{unit}"
    amount = float(f"{amount:.3g}")
    units = {"trainable": COUNTS, "operations": OPERATIONS}.get(like.kind, {"": 1})
    unit, size = max(((unit, size) for unit, size in units.items() if size <= max(amount, 1)), key=lambda one: one[1])
    return f"{like.kind}={amount / size:.3g}{unit if unit == 'k' else unit.upper()}"


def _parse_one(text: str) -> Budget:
    kind, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        raise UsageError(f"{text!r} is not a valid budget; write {EXAMPLES}")
    if kind in NOT_SIZED:
        raise UsageError(f"{text!r} is not a valid budget: {NOT_SIZED[kind]}; write {EXAMPLES}")
    if kind not in KINDS:
        called = nearest(kind, KINDS) or (f"; did you mean {CALLED[kind]!r}?" if kind in CALLED else "")
        raise UsageError(f"unknown budget {kind!r}{called}; write {EXAMPLES}")
    text = f"{kind}={value}"
    if kind == "memory":
        return Budget(kind, text, parse_memory(value).bytes)
    if kind == "stored":
        return Budget(kind, text, parse_size(value, "stored"))
    if kind == "seconds":
        return Budget(kind, text, _parse_number(kind, value, TIMES, "600, 90s, 10min or 2h"))
    if kind == "operations":
        return Budget(kind, text, _parse_number(kind, value, OPERATIONS, "3P, 500T or 3e15"))
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
    if not isfinite(number):
        raise UsageError(f"{kind} {value!r} is not a finite number; write {examples}")
    return number
