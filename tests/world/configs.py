"""Launches every file in `configs/` that this machine has the devices for, and plans the others: a table.

Run it with `scripts/launch_configs`.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

from peftlab.quantities import format_bytes
from peftlab.recipe.dump import dump_recipe
from peftlab.recipe.schema import Recipe
from peftlab.runs.plan import plan
from peftlab.world.open import STRATEGIES
from tests.conftest import REPOSITORY
from tests.parameters.families import build
from tests.runs.recipes import METHODS
from tests.world.runs import even_recipe

CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))


def strategy_of(path: Path) -> str:
    """Return the strategy that a file's name says, as a plan calls it."""
    named = next((name for name in STRATEGIES if name in path.stem), "ddp")
    return f"{named}-offload" if "offload" in path.stem else named


def recipe_of(path: Path, folder: Path, device: str) -> Recipe:
    recipe = even_recipe(METHODS["qlora" if "qlora" in path.stem else "lora"], folder / path.stem, 1)
    return recipe.model_copy(update={"run": recipe.run.model_copy(update={"device": device, "save_every": None})})


def why_planned(config: dict[str, Any]) -> str:
    """Return what this machine lacks for a launch; empty if nothing."""
    if config["distributed_type"] == "DEEPSPEED" and not importlib.util.find_spec("deepspeed"):
        return "DeepSpeed is not installed"
    if config.get("use_cpu"):
        return ""
    here, wanted = torch.cuda.device_count(), config["num_processes"] // config["num_machines"]
    if here < wanted:
        return f"{here} of {wanted} CUDA devices"
    return "one of several machines" if config["num_machines"] > 1 else ""


def launch(path: Path, folder: Path) -> dict[str, Any]:
    """Train three steps by `accelerate launch`; return the exit code, the strategy and what was learned."""
    device = "cpu" if yaml.safe_load(path.read_text()).get("use_cpu") else "cuda"
    recipe, written = recipe_of(path, folder, device), folder / f"{path.stem}.yaml"
    written.write_text(dump_recipe(recipe))
    started = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(path), "-m", "peftlab"]
    ended = subprocess.run([*started, "train", str(written)], capture_output=True, text=True, timeout=400, cwd=folder)
    found = json.loads(result.read_text()) if (result := Path(recipe.run.output) / "result.json").exists() else {}
    return {
        "exit_code": ended.returncode,
        "status": found.get("status"),
        "strategy": found.get("environment", {}).get("strategy"),
        "processes": found.get("environment", {}).get("processes"),
        "losses": [found.get("metrics", {}).get(when, {}).get("loss") for when in ("before", "after")],
        "output": ended.stderr[-2000:] + ended.stdout[-2000:],
    }


def planned_bytes(path: Path, folder: Path) -> int:
    """Return what each device of a file needs, planned for a model of as many heads as a node has devices."""
    processes = yaml.safe_load(path.read_text())["num_processes"]
    build("llama", num_attention_heads=8, num_key_value_heads=8).config.save_pretrained(folder / "heads")
    strategy, recipe = strategy_of(path), recipe_of(path, folder, "cuda")
    data = recipe.data.model_copy(update={"train": "-", "evaluation": None})
    model = recipe.model.model_copy(update={"name": str(folder / "heads"), "init": "random"})
    recipe = recipe.model_copy(update={"model": model, "data": data})
    return plan(recipe, None, device="cuda", devices=processes, strategy=strategy).needed_bytes


def line_of(path: Path, folder: Path) -> str:
    if lacking := why_planned(yaml.safe_load(path.read_text())):
        return f"| {path.name} | planned: {lacking} | {format_bytes(planned_bytes(path, folder))} for each device |"
    found = launch(path, folder)
    before, after = found["losses"]
    if found["exit_code"]:
        return f"| {path.name} | failed: exit code {found['exit_code']} | {found['output'].splitlines()[-1]} |"
    launched = f"launched: {found['strategy']}, processes: {found['processes']}"
    return f"| {path.name} | {launched} | loss {before:.4f} to {after:.4f} |"


def main() -> None:
    print("| file | outcome | |\n|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="peftlab-configs-") as folder:
        for path in CONFIGS:
            print(line_of(path, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
