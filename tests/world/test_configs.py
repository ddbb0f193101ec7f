"""Configurations in `configs/` and scripts for clusters: their readers accept them, and they ask for what they say."""

from __future__ import annotations

import subprocess

import pytest
import torch
import yaml
from accelerate.commands.config import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from peftlab.recipe.schema import Recipe
from peftlab.world.open import STRATEGIES
from peftlab.world.request import is_on, requested_strategy
from tests.conftest import REPOSITORY
from tests.runs.recipes import shallow_sections

CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))
CLUSTER = REPOSITORY / "scripts" / "cluster"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_is_parsed_by_accelerate_and_explained_at_its_top(path):
    config = load_config_from_file(str(path))
    assert config.num_processes >= 1 and config.mixed_precision == "no", "peftlab does its own autocast"
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ") and len(first) > 20
    assert f"configs/{path.name}" in path.read_text(), "the command that uses it"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_launch_asks_for_the_strategy_of_its_configuration(path, monkeypatch, tmp_path):
    """Read from the environment in which accelerate would start the processes."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    arguments, config, _ = _validate_launch_command(
        launch_command_parser().parse_args(["--config_file", str(path), "script.py"])
    )
    if config.num_processes == 1:
        return
    arguments.deepspeed_fields_from_accelerate_config = ""
    # As `launch_command` chooses. Every file for the CPU has use_cpu and not cpu, so that its strategy is kept.
    environment = (
        prepare_deepspeed_cmd_env(arguments)[1] if arguments.use_deepspeed else prepare_multi_gpu_env(arguments)
    )
    request = requested_strategy(environment)
    named = [strategy for strategy in STRATEGIES if strategy in path.stem]
    assert [request.strategy] == named if request else named == []
    recipe = Recipe.model_validate(shallow_sections("lora", tmp_path, steps=1))
    with monkeypatch.context() as launched:
        for name, value in environment.items():
            launched.setenv(name, value)
        assert not request or not STRATEGIES[request.strategy].why_not(recipe, torch.device("cpu"))
    assert is_on(environment, "FSDP_OFFLOAD_PARAMS") == ("offload" in path.stem)


def test_the_scripts_for_clusters_are_what_their_readers_accept():
    slurm = CLUSTER / "slurm.sh"
    subprocess.run(["bash", "-n", str(slurm)], check=True)
    assert "#SBATCH --requeue" in slurm.read_text() and "--signal=" in slurm.read_text()
    (job,) = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text())
    assert job["kind"] == "Job" and job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    task = yaml.safe_load((CLUSTER / "skypilot.yaml").read_text())
    for command in (task["setup"], task["run"], job["spec"]["template"]["spec"]["containers"][0]["args"][0]):
        subprocess.run(["bash", "-n"], input=command, text=True, check=True)


@pytest.mark.parametrize("name", ["slurm.sh", "kubernetes.yaml", "skypilot.yaml"])
def test_what_to_edit_is_at_the_top_of_a_script(name):
    assert "Edit" in "\n".join((CLUSTER / name).read_text().splitlines()[:4])
