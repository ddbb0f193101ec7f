"""Two processes under `accelerate launch`, on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import torch
from safetensors.torch import load_file

from peftlab.recipe.dump import dump_recipe
from peftlab.runs.display import NoDisplay
from peftlab.runs.run import train
from peftlab.runs.verify import differing, load_final
from tests.conftest import REPOSITORY
from tests.runs.recipes import short_recipe


def launch_two(recipe, folder, *options):
    path = folder / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    config = REPOSITORY / "configs" / "cpu_two_processes.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [*command, "-m", "peftlab", "train", str(path), "--json", *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_two_processes_equal_one(tmp_path):
    """Oracle: one process whose accumulation is twice as long takes the same rows in every step."""
    settings = {"steps": 4, "batch_size": 2}
    done = launch_two(short_recipe("lora", tmp_path / "two", gradient_accumulation=1, **settings), tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    two = json.loads(done.stdout)
    one = train(short_recipe("lora", tmp_path / "one", gradient_accumulation=2, **settings), display=NoDisplay())
    assert two["environment"]["processes"] == 2
    assert two["progress"] == one.progress.model_dump()
    for when in ("before", "after"):
        assert abs(two["metrics"][when]["loss"] - one.metrics[when]["loss"]) < 1e-5
    ours, theirs = (load_file(tmp_path / n / "weights" / "adapter_model.safetensors") for n in ("one", "two"))
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-3, atol=2e-5)


def test_both_processes_stop_at_a_divergence(tmp_path):
    done = launch_two(short_recipe("full", tmp_path / "run", learning_rate=1e30, schedule="constant"), tmp_path)
    assert done.returncode != 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "diverged"
    assert "step 2" in done.stderr


def test_two_processes_resume_to_the_same_bytes(tmp_path):
    def recipe(name, **run):
        one = short_recipe("lora", tmp_path / name, steps=4, batch_size=2)
        method = one.method.model_copy(update={"dropout": 0.1})
        settings = one.run.model_copy(update={"save_every": 4} | run)
        return one.model_copy(update={"method": method, "run": settings})

    assert launch_two(recipe("a"), tmp_path).returncode == 0
    assert launch_two(recipe("b", stop_after=2), tmp_path).returncode != 0
    done = launch_two(recipe("b"), tmp_path, "--resume")
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["resumes"] == [{"step": 2, "exact": True, "reasons": []}]
    assert all(differing(load_final(tmp_path / "a"), load_final(tmp_path / "b")).values())
