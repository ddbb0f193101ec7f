"""Speed-ups of CUDA alone: seconds of a step with each one on and off, interleaved, and the losses of both sides."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

from proof.bench import Bench
from proof.shapes import Case, median, tried_shape

WARM_UP, TIMED = 3, 9
SWITCHES = ("liger", "varlen", "compile")
ROWS, LENGTH = 8, 2048
# Losses of bfloat16 that kernels round otherwise.
TOLERANCE = 2e-3


def run(bench: Bench) -> None:
    from peftlab.errors import UsageError

    for name in SWITCHES:
        with bench.case(name) as case:
            try:
                case |= compare(bench, name)
            except UsageError as error:  # liger-kernel was not carried along, or there is no card
                case |= {"says": str(error), "refused": True}


def compare(bench: Bench, name: str) -> dict[str, Any]:
    """Return the ratio of the medians of a step's seconds, on by off, of LoRA on rows of many lengths."""
    from proof.training import build

    shape = tried_shape(bench.folder) if bench.pretend else "llama-3.2-1b"
    rows, length = (2, 48) if bench.pretend else (ROWS, LENGTH)
    file = write_ragged_rows(bench.folder, length, 4 * rows)
    one = Case(shape, "lora", rows, length, settings=("data={train: '" + str(file) + "', format: text}",))
    switches = {
        switch: one.recipe(bench.folder, bench.device, f"training.speed.{name}={switch}") for switch in ("on", "off")
    }
    sides = {switch: build(recipe) for switch, recipe in switches.items()}
    losses: dict[str, list[float]] = {switch: [] for switch in sides}
    seconds: dict[str, list[float]] = {switch: [] for switch in sides}
    for number in range(1, WARM_UP + TIMED + 1):
        for switch, built in sides.items():
            started = time.perf_counter()
            losses[switch].append(built.step(number)[0])
            built.setup.world.synchronize()
            seconds[switch].append(time.perf_counter() - started)
    on, off = (median(seconds[switch][WARM_UP:]) for switch in sides)
    difference = max(abs(ours / theirs - 1) for ours, theirs in zip(losses["on"], losses["off"], strict=True))
    return {
        "ok": difference <= TOLERANCE,
        "ratio": on / off,
        "seconds": seconds,
        "losses": losses,
        "difference": difference,
        "says": f"a step takes {on / off:.2f} of its time ({on:.3f} by {off:.3f} s), losses differ by {difference:.1e}",
    }


def write_ragged_rows(folder: Path, length: int, count: int) -> Path:
    """Write rows of about an eighth of `length` tokens to all of it, the same at every call."""
    chance, path = random.Random(0), folder / f"ragged-{count}x{length}.jsonl"
    words = "one row of many words "
    rows = (words * chance.randint(length // 40 + 1, length // 5 + 1) for _ in range(count))
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    return path
