"""What a launch asks for, read from the environment that accelerate's own launcher makes."""

from __future__ import annotations

import pytest
from accelerate.commands.launch import launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

from peftlab.world.request import is_alone_in_a_launch, requested_strategy, undivided_heads

DEFAULTS = ["--mixed_precision", "no", "--num_machines", "1", "--dynamo_backend", "no"]


def environment_of(*options: str, alone: bool = False) -> dict[str, str]:
    """Return the environment in which accelerate's launcher starts a process."""
    parser = launch_command_parser()
    arguments = parser.parse_args([*DEFAULTS, "--num_cpu_threads_per_process", "1", *options, "script.py"])
    arguments.main_process_port = 0 if not alone else None
    return prepare_simple_launcher_cmd_env(arguments)[1] if alone else prepare_multi_gpu_env(arguments)


@pytest.mark.parametrize(
    ("options", "strategy"),
    [
        (["--multi_gpu"], None),
        (["--use_fsdp"], "fsdp1"),
        (["--use_fsdp", "--fsdp_version", "2"], "fsdp2"),
        (["--use_megatron_lm"], "megatron"),
        (["--use_parallelism_config", "--parallelism_config_tp_size", "2"], "tensor"),
        (["--use_parallelism_config", "--parallelism_config_cp_size", "2"], "context"),
        (["--use_parallelism_config", "--parallelism_config_sp_size", "2"], "sequence"),
        (["--use_parallelism_config", "--parallelism_config_dp_shard_size", "2"], "fsdp2"),
        (["--use_parallelism_config", "--parallelism_config_dp_replicate_size", "2"], "mesh"),
        (["--use_fsdp", "--use_parallelism_config", "--parallelism_config_tp_size", "2"], "tensor"),
    ],
)
def test_the_strategy_of_a_launch_is_read_from_its_environment(options, strategy):
    request = requested_strategy(environment_of("--num_processes", "2", *options))
    assert (request.strategy if request else None) == strategy


@pytest.mark.parametrize(("stage", "strategy"), [("1", "zero1"), ("3", "zero3"), ("none", "deepspeed")])
def test_deepspeed_is_named_by_its_stage(stage, strategy):
    asked = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": stage}
    assert requested_strategy(asked).strategy == strategy


@pytest.mark.parametrize("value", ["false", "0", ""])
def test_a_strategy_that_is_switched_off_is_not_asked_for(value):
    names = ("DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG")
    assert requested_strategy({f"ACCELERATE_USE_{name}": value for name in names}) is None


@pytest.mark.parametrize(("processes", "alone"), [("2", True), ("1", False)])
def test_a_launcher_that_starts_one_process_of_several_is_noticed(processes, alone, monkeypatch):
    for name in ("MASTER_ADDR", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    environment = environment_of("--cpu", "--num_processes", processes, alone=True)
    assert is_alone_in_a_launch(environment) is alone
    assert not is_alone_in_a_launch(environment | {"LOCAL_RANK": "0", "WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    ("config", "heads"),
    [
        ({"num_attention_heads": 8, "num_key_value_heads": 3}, 3),
        ({"num_attention_heads": 9}, 9),
        ({"num_attention_heads": 5, "text_config": {"num_attention_heads": 8, "num_key_value_heads": 1}}, 1),
        ({"num_attention_heads": 9, "num_key_value_heads": 4}, None),
        ({"num_attention_heads": 9, "num_key_value_heads": None}, 9),
        ({}, None),
    ],
)
def test_heads_that_two_processes_cannot_share_are_known_from_the_configuration(config, heads):
    reason = undivided_heads(config, 2)
    assert reason.startswith(f"tensor parallel divides attention heads, and {heads} key-value") if heads else not reason
    assert not undivided_heads(config, 1)
