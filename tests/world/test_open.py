"""Opening a world: the strategy of the launch, or one line that refuses it before anything is loaded."""

from __future__ import annotations

import os

import pytest
import torch

from peftlab.cli.app import run
from peftlab.errors import MissingRequirementError, UsageError
from peftlab.runs.directory import RunDirectory
from peftlab.world import open as open_module
from peftlab.world.open import STRATEGIES, open_world, refuse_missing_trackers
from peftlab.world.single import Single
from tests.conftest import REPOSITORY

TINY = REPOSITORY / "recipes" / "tiny" / "lora.yaml"
UNSUPPORTED = [
    ({"ACCELERATE_USE_FSDP": "true"}, "FSDP 1"),
    ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}, "DeepSpeed ZeRO-1"),
    ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM"),
    ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_CP_SIZE": "2"}, "context parallel"),
]


@pytest.fixture
def launched_as(monkeypatch):
    """Return a function that sets the environment of a launch; opening accelerate is then a failure."""

    def launch(environment):
        monkeypatch.setattr(open_module, "PartialState", lambda **_: pytest.fail("accelerate was opened"))
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return launch


def test_a_process_alone_is_single():
    world = open_world("cpu")
    assert (world.strategy, world.device) == ("single", torch.device("cpu"))
    assert (world.process, world.processes, world.is_main, world.notes) == (0, 1, True, ())


@pytest.mark.parametrize(("environment", "title"), UNSUPPORTED, ids=[title for _, title in UNSUPPORTED])
def test_an_unsupported_strategy_is_refused_in_one_line_before_accelerate_opens(launched_as, environment, title):
    launched_as(environment)
    with pytest.raises(UsageError) as error:
        open_world("cpu")
    assert f"asks for {title}, which peftlab does not support" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("command", [["train"], ["train", "--dry-run"], ["plan"]], ids=" ".join)
def test_commands_refuse_an_unsupported_strategy_before_anything_is_loaded(
    launched_as, command, tmp_path, monkeypatch, capfd
):
    for place in ("bench.read_data", "loading.load_examples", "loading.load_model", "loading.build_meta"):
        monkeypatch.setattr(f"peftlab.runs.{place}", lambda *_, **__: pytest.fail("something was loaded"))
    launched_as({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"})
    assert run([command[0], str(TINY), f"run.output={tmp_path / 'run'}", *command[1:]]) == 2
    errors = capfd.readouterr().err.splitlines()
    assert len(errors) == 1 and "ACCELERATE_USE_FSDP asks for FSDP 1" in errors[0]
    assert not (tmp_path / "run").exists()


def test_evaluate_refuses_an_unsupported_strategy(launched_as, tmp_path, capfd):
    directory = RunDirectory.claim(tmp_path / "run")
    directory.weights.mkdir()
    directory.recipe.write_text(TINY.read_text())
    (directory.path / "result.json").write_text("{}")
    launched_as({"ACCELERATE_USE_DEEPSPEED": "true"})
    assert run(["evaluate", str(directory.path)]) == 2
    assert "ACCELERATE_USE_DEEPSPEED asks for DeepSpeed" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["zero1", "mesh"])
def test_a_plan_offers_only_what_training_supports(name, capfd):
    assert run(["plan", str(TINY), "--devices", "4", "--strategy", name]) == 2
    errors = capfd.readouterr().err.splitlines()
    assert (
        len(errors) == 1
        and f"unknown strategy '{name}'" in errors[0]
        and "supported: ddp, zero2, fsdp2, zero3" in errors[0]
    )


def test_a_strategy_is_one_class_and_one_entry(monkeypatch):
    class Sharded(Single):
        strategy = "fsdp2"

    monkeypatch.setitem(STRATEGIES, Sharded.strategy, Sharded)
    # Accelerate reads its own settings of FSDP, of which a process alone has none.
    monkeypatch.setenv("PARALLELISM_CONFIG_DP_SHARD_SIZE", "2")
    assert type(open_world("cpu")) is Sharded


def test_no_process_leaves_weights_for_another_one_to_load(monkeypatch):
    """The default of accelerate's launcher, which transformers reads wherever a model is loaded."""
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    open_world("cpu")
    assert "FSDP_CPU_RAM_EFFICIENT_LOADING" not in os.environ


def test_a_launcher_that_started_fewer_processes_than_asked_is_noted(monkeypatch):
    for name, value in {"ACCELERATE_USE_CPU": "True", "ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "x"}.items():
        monkeypatch.setenv(name, value)
    (note,) = open_world("cpu").notes
    assert "asked for several processes and started one" in note and "\n" not in note


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
def test_a_device_that_is_not_here_is_refused():
    with pytest.raises(MissingRequirementError, match="run.device: cuda was asked for"):
        open_world("cuda")


def test_trackers_that_are_unknown_or_not_installed_are_refused():
    refuse_missing_trackers(())
    with pytest.raises(MissingRequirementError, match="run.trackers: .paper. is unknown; known: aim, clearml"):
        refuse_missing_trackers(["paper"])
    with pytest.raises(MissingRequirementError, match="run.trackers: dvclive is not installed"):
        refuse_missing_trackers(["dvclive"])
