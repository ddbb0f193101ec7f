"""Trains each method under each strategy on two CPU processes, and compares it with one process alone.

Run it with `scripts/verify_strategies`. It adds a line of JSON for each pair that its output does not have yet.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from peftlab.recipe.schema import Recipe
from peftlab.reports import RunResult
from peftlab.runs.directory import RunDirectory
from peftlab.runs.display import NoDisplay
from peftlab.runs.run import train
from peftlab.world.request import variables_of
from tests.runs.pairs import Pair
from tests.runs.recipes import METHODS, shallow_sections

# As the committed results name them; ZeRO where DeepSpeed is installed.
STRATEGIES = {name.replace("-", " + "): variables_of(name) for name in ("ddp", "fsdp2", "fsdp2-offload")}
if importlib.util.find_spec("deepspeed"):
    STRATEGIES |= {name: variables_of(name) for name in ("zero2", "zero3")}
CASES = METHODS | {"fp4": METHODS["qlora"] | {"quantization": "fp4"}}
LEARNING_RATE = 1e-3


def recipe_of(method: dict, folder: Path, steps: int, accumulation: int) -> Recipe:
    training = {"batch_size": 2, "gradient_accumulation": accumulation, "learning_rate": LEARNING_RATE}
    sections = shallow_sections("full", folder, steps=steps, **training)
    sections["method"] = method
    sections["data"] |= {"max_length": 48, "train_rows": 64, "evaluation_rows": 6}
    sections["evaluation"] = {"generation": {"examples": 0}}
    sections["run"] |= {"log_every": 1}
    return Recipe.model_validate(sections)


def losses_of(run: Path) -> list[float]:
    """Return the logged losses of a run's steps and evaluations, in their order."""
    return [one["loss"] for one in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in one]


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    """Return what a run saved, by name."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(RunDirectory(run).weights.glob("*.safetensors")):
        found |= load_file(path)
    return found


def compare(name: str, strategy: str, one: Path, two: Path, alone: RunResult, steps: int) -> dict:
    """Return how two processes differ from one: the largest relative difference of losses, and the rest."""
    result = RunDirectory.open(two).read_result()
    expected, found = losses_of(one), losses_of(two)
    theirs, ours = weights_of(one), weights_of(two)
    same = theirs.keys() == ours.keys() and all(ours[key].shape == value.shape for key, value in theirs.items())
    return {
        "method": name,
        "strategy": strategy,
        "steps": steps,
        "losses": len(found),
        "loss_difference": max(abs(a / b - 1) for a, b in zip(found, expected, strict=True)),
        "last_loss": found[-1],
        "same_counts": result.parameters == alone.parameters and result.progress == alone.progress,
        "audit_clean": bool(result.audit and result.audit.clean and alone.audit and alone.audit.clean),
        "same_files": same,
        "weight_difference": max(float((ours[key] - value).abs().max()) for key, value in theirs.items()),
        "largest_weight": max(float(value.abs().max()) for value in theirs.values()),
    }


def run_method(name: str, strategies: list[str], steps: int) -> list[dict]:
    """Return a line for each strategy, an error's text where one could not train."""
    with tempfile.TemporaryDirectory(prefix="peftlab-strategies-") as kept:
        folder = Path(kept)
        alone = train(recipe_of(CASES[name], folder / "one", steps, 4), display=NoDisplay())
        found = []
        for strategy in strategies:
            two = folder / strategy.replace(" ", "")
            recipe = recipe_of(CASES[name], two, steps, 2)
            pair = Pair(recipe, folder, environment=STRATEGIES[strategy])
            if pair.wait(1200) == [0, 0]:
                found.append(compare(name, strategy, folder / "one", two, alone, steps))
            else:
                found.append({"method": name, "strategy": strategy, "refused": pair.outputs()[0].splitlines()[-1]})
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--output", type=Path, default=Path("runs/strategies.jsonl"))
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    lines = options.output.read_text().splitlines() if options.output.exists() else []
    done = {(one["method"], one["strategy"]) for one in map(json.loads, lines)}
    for name in CASES:
        missing = [strategy for strategy in STRATEGIES if (name, strategy) not in done]
        started = time.monotonic()
        for one in run_method(name, missing, options.steps) if missing else []:
            with options.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(one) + "\n")
            print(json.dumps(one), flush=True)
        if missing:
            print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
