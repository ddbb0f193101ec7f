"""Sizes of memory as people write them: `24GiB`, or the name of a GPU. Torch-free."""

from __future__ import annotations

import re
from dataclasses import dataclass

from peftlab.errors import UsageError, nearest

MIB = 1024**2
UNITS = {"B": 1} | {
    unit: base**power
    for power, letter in enumerate("KMGT", start=1)
    for unit, base in ((f"{letter}", 1024), (f"{letter}iB", 1024), (f"{letter}B", 1000))
}
# From these numbers on, a size without a unit was not meant in GiB, nor in MiB.
MANY_GIB, MANY_MIB = 1024, 1024**2
SIZE = re.compile(r"([-+]?[0-9][0-9_]*(?:\.[0-9]+)?)\s*([A-Za-z]*)")


@dataclass(frozen=True)
class Gpu:
    """A GPU's memory as `nvidia-smi` shows it, and its compute capability."""

    bytes: int
    capability: tuple[int, int]


GPUS = {
    "T4": Gpu(15360 * MIB, (7, 5)),
    "V100-16GB": Gpu(16384 * MIB, (7, 0)),
    "V100-32GB": Gpu(32768 * MIB, (7, 0)),
    "A10G": Gpu(23028 * MIB, (8, 6)),
    "A100-40GB": Gpu(40960 * MIB, (8, 0)),
    "A100-80GB": Gpu(81920 * MIB, (8, 0)),
    "A6000": Gpu(49140 * MIB, (8, 6)),
    "L4": Gpu(23034 * MIB, (8, 9)),
    "L40S": Gpu(46068 * MIB, (8, 9)),
    "RTX-3060": Gpu(12288 * MIB, (8, 6)),
    "RTX-3090": Gpu(24576 * MIB, (8, 6)),
    "RTX-4080": Gpu(16376 * MIB, (8, 9)),
    "RTX-4090": Gpu(24564 * MIB, (8, 9)),
    "RTX-5090": Gpu(32607 * MIB, (12, 0)),
    "H100": Gpu(81559 * MIB, (9, 0)),
    "H200": Gpu(143771 * MIB, (9, 0)),
    "B200": Gpu(183359 * MIB, (10, 0)),
}
DEFAULT_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Budget:
    """An amount of memory, and the GPU that was named, if one was."""

    bytes: int
    gpu: str | None = None

    @property
    def capability(self) -> tuple[int, int]:
        return GPUS[self.gpu].capability if self.gpu else DEFAULT_CAPABILITY


def parse_budget(text: str) -> Budget:
    """Return the memory that `24GiB`, `24 GB` (decimal), `24G` (binary) or `RTX 4090` stands for.

    Raises UsageError for anything else, in one line.
    """
    if SIZE.fullmatch(text.strip()):
        return Budget(parse_size(text, "memory"))
    names = {_plain(name): name for name in GPUS}
    name = names.get(_plain(text))
    if name is None:
        raise UsageError(
            f"memory {text!r} is neither a size such as 24GiB nor a known GPU"
            f"{nearest(text, GPUS)}; known: {', '.join(GPUS)}"
        )
    return Budget(GPUS[name].bytes, name)


def parse_size(text: str, what: str) -> int:
    """Return the bytes of a size with its unit. Raises UsageError for anything else, in one line about `what`."""
    found = SIZE.fullmatch(text.strip())
    if not found:
        raise UsageError(f"{what} {text!r} is not a size; write 8GiB or 500MB")
    number, unit = found.groups()
    amount = float(number.replace("_", ""))
    known = {name.lower(): factor for name, factor in UNITS.items()}
    if amount <= 0:
        raise UsageError(f"{what} {text!r} must be more than zero; write 8GiB or 500MB")
    if not unit:
        raise UsageError(f"{what} {text!r} has no unit; write {' or '.join(_with_units(number, amount))}")
    if unit.lower() not in known:
        raise UsageError(f"{what} {text!r}: unknown unit {unit!r}; use MiB, GiB or TiB (or MB, GB, TB)")
    size = int(amount * known[unit.lower()])
    if size < 1:
        raise UsageError(f"{what} {text!r} is less than a byte; write 8GiB or 500MB")
    return size


def _with_units(number: str, amount: float) -> list[str]:
    """Return a number with the units that it can have been meant in: bytes if it is large, else MiB or GiB."""
    if amount >= MANY_MIB:
        return [f"{number}B"]
    return [f"{number}MiB"] if amount >= MANY_GIB else [f"{number}GiB", f"{number}MiB"]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().removeprefix("nvidia"))
