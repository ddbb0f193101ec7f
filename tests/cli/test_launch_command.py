"""`peftlab launch`: its exit code, what it refuses, and a run of two processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from peftlab.cli.app import run
from peftlab.recipe.dump import dump_recipe
from peftlab.runs.directory import RunDirectory
from peftlab.runs.processes import exit_code, run_processes
from tests.conftest import REPOSITORY
from tests.runs.recipes import shallow_recipe

TINY = REPOSITORY / "recipes" / "tiny" / "lora.yaml"


@pytest.mark.parametrize(
    ("codes", "code"), [([0, 0], 0), ([12, 7], 7), ([12, -9], 12), ([143, 143], 143), ([-9, -9], 12), ([2, 2], 2)]
)
def test_the_exit_code_is_that_of_the_process_that_failed_by_itself(codes, code):
    assert exit_code(codes) == code


def test_each_process_knows_its_place_and_the_strategy(tmp_path):
    script = (
        "import os, pathlib; names = 'RANK LOCAL_RANK WORLD_SIZE FSDP_VERSION'.split(); "
        f"pathlib.Path({str(tmp_path)!r}, os.environ['RANK']).write_text(' '.join(os.environ[n] for n in names))"
    )
    assert run_processes([sys.executable, "-c", script], 2, {"FSDP_VERSION": "2"}) == 0
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["0 0 2 2", "1 1 2 2"]


@pytest.mark.parametrize("name", ["zero1", "context", "pipeline", "fsdp"])
def test_a_strategy_that_training_does_not_support_is_refused_in_one_line(name, capfd):
    assert run(["launch", str(TINY), "--strategy", name]) == 2
    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == 1 and f"unknown strategy '{name}'" in errors[0] and "supported: ddp, fsdp2" in errors[0]


@pytest.mark.slow
def test_a_launch_trains_with_fsdp2(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(shallow_recipe("lora", tmp_path / "run", steps=2, batch_size=1)))
    command = [sys.executable, "-m", "peftlab", "launch", str(path), "--processes", "2", "--strategy", "fsdp2"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    result = RunDirectory.open(tmp_path / "run").read_result()
    assert result.environment["strategy"] == "fsdp2" and result.status == "finished"
