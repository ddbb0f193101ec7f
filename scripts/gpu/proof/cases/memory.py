"""Predicted memory of two training steps against the allocator's peak, with random weights of a published shape."""

from __future__ import annotations

from typing import Any

from proof.bench import Bench
from proof.shapes import Case, check, open_planner, tried_shape

TOLERANCE = 0.05
ROWS, LENGTH = 4, 1024
SMALLEST = "llama-3.2-1b"
METHODS = ("lora", "full", "qlora", "adapters", "prefix", "bitfit")
INT8 = ("method.quantization=int8",)


def run(bench: Bench, shape: str = SMALLEST) -> None:
    planner = open_planner(bench.device)
    chosen = cases(shape, ROWS, LENGTH)
    if bench.pretend:
        tried = tried_shape(bench.folder)
        chosen = cases(tried, 1, 32)[:7] if shape == SMALLEST else [Case(tried, "lora", 2, 32)]
    for one in chosen:
        with bench.case(one.name) as case:
            case |= judge(check(one, bench.folder, bench.device, planner))


def cases(shape: str, rows: int, length: int) -> list[Case]:
    """Return the methods without checkpointing, 8-bit weights, and the three that matter most with checkpointing."""
    return [
        *(Case(shape, method, rows, length) for method in METHODS),
        Case(shape, "qlora", rows, length, settings=INT8, variant="qlora int8"),
        *(Case(shape, method, rows, length, checkpointing=True) for method in METHODS[:3]),
    ]


def judge(found: dict[str, Any]) -> dict[str, Any]:
    """Return what was found with the error of the prediction, and whether it is within the tolerance."""
    predicted = found["predicted_bytes"]
    if "measured_bytes" not in found:
        says = f"{predicted / 2**20:,.0f} MiB predicted; {found.pop('error', 'does not fit')}"
        return found | {"says": says}
    error = predicted / found["measured_bytes"] - 1
    phases = found["measured"]["device_phases"].values()
    reserved = max((phase["reserved_bytes"] for phase in phases), default=0)
    says = f"{predicted / 2**20:,.0f} MiB predicted, {found['measured_bytes'] / 2**20:,.0f} measured ({error:+.1%})"
    return found | {"ok": abs(error) <= TOLERANCE, "error_of_plan": error, "reserved_bytes": reserved, "says": says}
