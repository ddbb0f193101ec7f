"""Measures what a step spends computing, sending and waiting, in one process and in several: `--help`.

Run it with `scripts/measure_scaling`, on the CPU or on CUDA devices. Weak scaling gives each process as many rows as
one alone has, strong scaling divides those rows. Sending is timed after all processes have met, and waiting is until
then: of these steps nothing is hidden behind computing, as the plain ones beside them may do.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import distributed

from peftlab.optimization.step import optimizer_step
from peftlab.recipe.load import load_recipe
from peftlab.recipe.schema import Recipe
from peftlab.runs.bench import prepare
from peftlab.runs.planner import Planner
from peftlab.runs.setup import build_setup
from peftlab.training.setup import Setup
from peftlab.training.stop import Stop
from peftlab.world.base import World
from peftlab.world.hardware import device_name
from peftlab.world.open import open_world
from peftlab.world.quiet import quiet_libraries
from peftlab.world.request import variables_of
from tests.runs.pairs import free_port

# torch's collectives that FSDP 2 calls, under their names in torch 2.11 and 2.13.
COLLECTIVES = ("all_gather_into_tensor", "all_gather_single", "reduce_scatter_tensor", "reduce_scatter_single")


class Clock:
    """Seconds of a step's collectives: until all processes had met, and of sending; and the bytes sent in rings."""

    def __init__(self, world: World):
        self.world, self.inside = world, False
        self.reset()

    def reset(self) -> None:
        self.waiting = self.sending = 0.0
        self.sent = 0

    def timed(self, collective: Callable[..., Any], whole_bytes: int, parts: int = 1) -> Any:
        """Run a collective of so many bytes after all processes have met; an all-reduce sends two parts of them."""
        started = self.now()
        distributed.barrier()
        met = self.now()
        result = collective()
        self.waiting += met - started
        self.sending += self.now() - met
        self.sent += parts * whole_bytes * (self.world.processes - 1) // self.world.processes
        return result

    def now(self) -> float:
        self.world.synchronize()
        return time.perf_counter()

    def around(self, collective: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **named: Any) -> Any:
            if self.inside:
                return collective(*arguments, **named)
            self.inside = True  # a collective may call another one of these
            try:
                tensors = [one for one in (*arguments, *named.values()) if isinstance(one, torch.Tensor)]
                return self.timed(lambda: collective(*arguments, **named), max(one.nbytes for one in tensors))
            finally:
                self.inside = False

        return called

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Time FSDP 2's collectives while the context is open."""
        with ExitStack() as stack:
            for name in COLLECTIVES:
                if (collective := getattr(distributed, name, None)) is not None:
                    stack.enter_context(mock.patch.object(distributed, name, self.around(collective)))
            yield

    def watch_buckets(self, model: Any) -> None:
        """Time the exchange of DDP's buckets, which its reducer makes without Python otherwise."""

        def exchange(_, bucket):  # without annotations: DDP compares them with its types, and these would be texts
            buffer = bucket.buffer().div_(self.world.processes)
            self.timed(lambda: distributed.all_reduce(buffer), buffer.nbytes, parts=2)
            done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
            done.set_result(buffer)
            return done

        model.register_comm_hook(None, exchange)


def take_steps(setup: Setup, first: int, count: int, clock: Clock) -> list[float]:
    """Return the seconds of each of `count` steps."""
    seconds = []
    for step in range(first, first + count):
        batches, targets = setup.rows.batches(step), setup.rows.count(step).targets
        started = clock.now()
        optimizer_step(setup, batches, targets)
        seconds.append(clock.now() - started)
    return seconds


def measure(recipe: Recipe, steps: int) -> dict[str, Any]:
    """Return what this process measures: plain steps, then steps whose collectives are timed."""
    quiet_libraries()
    world = open_world(recipe.run.device)
    bench = prepare(recipe, world)
    setup = build_setup(bench, bench.apply().model, Stop())
    setup.model.train()
    clock = Clock(world)
    take_steps(setup, 1, 2, clock)
    plain = take_steps(setup, 3, steps, clock)
    world.wait()
    timed, tokens = plain, sum(setup.rows.count(step).tokens for step in range(3, 3 + steps)) / steps
    if world.processes > 1:
        if not world.divided:
            clock.watch_buckets(setup.model)
        with clock.watching():
            clock.reset()
            timed = take_steps(setup, 3 + steps, steps, clock)
    found = {
        "step_seconds": statistics.median(plain),
        "timed_step_seconds": statistics.mean(timed),
        "waiting_seconds": clock.waiting / steps,
        "sending_seconds": clock.sending / steps,
        "sent_bytes": clock.sent // steps,
        "tokens_per_second": tokens / statistics.median(plain),
        "device": device_name(world.device),
    }
    found["computing_seconds"] = found["timed_step_seconds"] - found["waiting_seconds"] - found["sending_seconds"]
    world.wait()
    world.close()
    return found


def launch(recipe: Path, overrides: list[str], processes: int, strategy: str, steps: int) -> dict[str, Any]:
    """Return the slowest process's step, and the means of all processes' parts of it."""
    with tempfile.TemporaryDirectory() as folder:
        shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        command = [sys.executable, "-m", "tests.world.scaling", str(recipe), *overrides, "--steps", str(steps)]
        started = []
        for number in range(processes):
            place = {"RANK": str(number), "LOCAL_RANK": str(number), **shared, **variables_of(strategy)}
            environment = os.environ | (place if processes > 1 else {})
            started.append(subprocess.Popen([*command, "--worker", f"{folder}/{number}.json"], env=environment))
        if any(process.wait() for process in started):
            raise SystemExit("a process failed; its error is above")
        parts = [json.loads(path.read_text()) for path in sorted(Path(folder).iterdir())]
    mean = {name: statistics.mean(one[name] for one in parts) for name in parts[0] if name != "device"}
    mean["step_seconds"] = max(one["step_seconds"] for one in parts)
    return {"processes": processes, "strategy": strategy, "device": parts[0]["device"], **mean}


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one process alone, and weak and strong scaling under each strategy, with the plan's bytes sent."""
    recipe = load_recipe(options.recipe, options.overrides)
    rows, count = recipe.training.batch_size, options.processes
    alone = launch(options.recipe, options.overrides, 1, "ddp", options.steps)
    found = [alone | {"scaling": "alone", "rows_per_process": rows}]
    for strategy in options.strategies:
        for scaling, own in (("weak", rows), ("strong", max(rows // count, 1))):
            one = launch(
                options.recipe, [*options.overrides, f"training.batch_size={own}"], count, strategy, options.steps
            )
            speed = one["tokens_per_second"] / alone["tokens_per_second"]
            planner = Planner(torch.device(recipe.run.device), processes=count, strategy=strategy)
            planned = planner(recipe).communication
            found.append(
                one
                | {"scaling": scaling, "rows_per_process": own, "speed_up": speed, "efficiency": speed / count}
                | {"planned_sent_bytes": planned.total_bytes if planned else 0}
            )
            print(json.dumps(found[-1]), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", help="settings of the recipe, as in run.device=cpu")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--strategies", nargs="+", default=["ddp", "fsdp2"])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path("runs/scaling.json"))
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_intermixed_args()
    if options.worker is not None:
        options.worker.write_text(json.dumps(measure(load_recipe(options.recipe, options.overrides), options.steps)))
        return
    found = compare(options)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
