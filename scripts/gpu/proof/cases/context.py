"""The longest row that QLoRA with checkpointing trains on a device: lengths doubled until memory or time ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from proof.bench import Bench
from proof.shapes import SHAPES, Case, check, open_planner, tried_shape, write_config

SHAPE = "llama-3.1-8b"
FIRST, LAST = 8192, 2**20
SETTINGS = ("method.rank=32", "training.steps=1")


def run(bench: Bench) -> None:
    shape = widen(bench.folder, Path(tried_shape(bench.folder)) if bench.pretend else SHAPES / SHAPE)
    planner = open_planner(bench.device)
    if not bench.pretend:
        with bench.case("planned longest") as case:
            case |= plan_longest(bench, shape, planner)
    length = 64 if bench.pretend else FIRST
    while length <= (64 if bench.pretend else LAST):
        with bench.case(f"{length} tokens") as case:
            case |= try_length(bench, shape, length, planner)
        if "measured_bytes" not in case:
            break
        length *= 2


def widen(folder: Path, shape: Path) -> Path:
    """Return a copy of a shape with as many positions as are tried."""
    config = json.loads((shape / "config.json").read_text(encoding="utf-8"))
    return write_config(folder / f"{shape.name}-long", config | {"max_position_embeddings": LAST})


def long_case(shape: Path, length: int) -> Case:
    return Case(str(shape), "qlora", 1, length, checkpointing=True, settings=SETTINGS)


def try_length(bench: Bench, shape: Path, length: int, planner: Any) -> dict[str, Any]:
    """Return predicted and measured memory of one row of this length; right if the plan says what happens."""
    found = check(long_case(shape, length), bench.folder, bench.device, planner)
    fits = found["predicted"]["peak_bytes"] <= found["predicted"]["capacity_bytes"]
    ran = "measured_bytes" in found
    measured = f"{found['measured_bytes'] / 2**30:.1f} GiB measured" if ran else found.pop("error", "not tried")
    says = f"{found['predicted_bytes'] / 2**30:.1f} GiB predicted, {measured}"
    return found | {"ok": fits == ran, "says": says}


def plan_longest(bench: Bench, shape: Path, planner: Any) -> dict[str, Any]:
    """Return the largest length that the plan says this device has memory for."""
    from peftlab.memory.fit import maximize

    recipe = long_case(shape, FIRST).recipe(bench.folder, bench.device)
    length, report = maximize(recipe, "max_length", planner.usable_bytes, planner, LAST)
    return {"length": length, "predicted": report.model_dump(), "says": f"{length:,} tokens by the plan"}
