"""The cost of recording memory during a steady step: see scripts/measure_recording_cost."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from statistics import median

import torch
from results_file import write_result

from peftlab.memory.measure import MemoryMeter
from peftlab.optimization.step import optimizer_step
from peftlab.recipe.load import load_recipe
from peftlab.runs.bench import prepare
from peftlab.runs.setup import build_setup
from peftlab.training.setup import Setup
from peftlab.training.stop import Stop
from peftlab.world.open import open_world
from peftlab.world.quiet import quiet_libraries

PAIRS, WARM_UP = 30, 3


def step(setup: Setup, number: int) -> None:
    """Do one optimiser step of the loop."""
    optimizer_step(setup, setup.rows.batches(number), setup.rows.count(number).targets)


def seconds_of(setup: Setup, number: int, meter: MemoryMeter | None) -> float:
    started = time.perf_counter()
    if meter is None:
        step(setup, number)
    else:
        with meter.phase("training"):
            step(setup, number)
            meter.current()
    setup.world.synchronize()
    return time.perf_counter() - started


def seconds_of_recording(meter: MemoryMeter) -> float:
    """Return what recording takes by itself."""
    started = time.perf_counter()
    with meter.phase("nothing"):
        meter.current()
    return time.perf_counter() - started


def main() -> None:
    arguments = sys.argv[1:]
    path = Path(arguments.pop(0)) if arguments and "=" not in arguments[0] else Path("recipes/tiny/lora.yaml")
    quiet_libraries()
    recipe = load_recipe(path, arguments)
    bench = prepare(recipe, open_world(recipe.run.device))
    model = bench.apply().model
    setup = build_setup(bench, model, Stop())
    setup.model.train()
    meter = MemoryMeter(bench.device)
    plain, recorded = [], []
    for pair in range(1, PAIRS + WARM_UP + 1):
        # The same rows both times, in an order that changes, so that neither side is always the warm one.
        turns = [(plain, None), (recorded, meter)][:: 1 if pair % 2 else -1]
        for seconds, watched in turns:
            seconds.append(seconds_of(setup, pair, watched))
    pairs = list(zip(plain[WARM_UP:], recorded[WARM_UP:], strict=True))
    added = median(after / before for before, after in pairs) - 1
    found = {
        "recipe": str(path),
        "pairs": PAIRS,
        "plain_seconds": median(before for before, _ in pairs),
        "recorded_seconds": median(after for _, after in pairs),
        "added": added,
        "recording_seconds": median(seconds_of_recording(meter) for _ in range(200)),
    }
    share = found["recording_seconds"] / found["plain_seconds"]
    print(f"a step: {found['plain_seconds']:.4f} s, with memory recorded: {found['recorded_seconds']:.4f} s")
    print(f"recording alone takes {found['recording_seconds'] * 1e6:.0f} us, {share:.3%} of a step")
    print(f"the median of {PAIRS} pairs of steps differs by {added:+.2%}")
    print(f"written: {write_result('recording_cost', torch.device(bench.device), found)}")


if __name__ == "__main__":
    main()
