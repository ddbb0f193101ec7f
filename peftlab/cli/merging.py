"""The options that `merge` and `export` share, as one MergeOptions, and the line before a merge."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peftlab.reports import MemoryReport
    from peftlab.runs.merge import MergeOptions


class Base(StrEnum):
    auto = "auto"
    original = "original"
    dequantised = "dequantised"


MergeBase = Annotated[
    Base,
    typer.Option("--base", help="Weights that a QLoRA run's updates are added to; auto tries both, keeps the better."),
]
ComparedRows = Annotated[
    int, typer.Option("--rows", min=0, help="Held-out rows on which the result is compared; 0 compares nothing.")
]
Tolerance = Annotated[
    float | None,
    typer.Option(
        "--tolerance",
        min=0,
        help="Largest difference that is accepted, as a share of what training changed.",
        show_default="by the type",
    ),
]


def merge_options(
    base: Base,
    dtype: str,
    rows: int,
    tolerance: float | None,
    *,
    no_verify: bool,
    overwrite: bool,
    overrides: Sequence[str] | None,
    quantize: str | None = None,
) -> MergeOptions:
    """Return what was typed as options of a merge that says before it starts what memory it takes."""
    from peftlab.runs.merge import MergeOptions

    changes = tuple(overrides or ())
    return MergeOptions(base.value, dtype, rows, tolerance, not no_verify, overwrite, quantize, changes, say_memory)


def say_memory(planned: MemoryReport) -> None:
    """Print the memory that a merge is expected to take, and what would take less where that is not free."""
    from peftlab.quantities import format_bytes

    size = f"merging takes about {format_bytes(planned.peak_bytes)} beside the loaded libraries"
    free = f"{format_bytes(planned.capacity_bytes or 0)} of memory is free"
    remedies = "".join(f"; {remedy}" for remedy in planned.remedies)
    line = f"{size}; {free}" if planned.fits else f"note: {size}, but only {free}{remedies}"
    print(f"peftlab: {line}", file=sys.stderr)
