"""What the launcher asks for in the environment: a strategy, and a number of processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftlab.errors import UsageError, nearest

PARALLEL = "PARALLELISM_CONFIG_"
# What each size of accelerate's parallelism config divides, and the strategy that this makes.
PARALLELISMS = {
    "TP_SIZE": ("tensor", "tensor parallel"),
    "CP_SIZE": ("context", "context parallel"),
    "SP_SIZE": ("sequence", "sequence parallel"),
    "DP_SHARD_SIZE": ("fsdp2", "FSDP 2"),
}
TENSOR_SIZE = f"{PARALLEL}TP_SIZE"
HEADS = (
    "tensor parallel divides attention heads, and {} key-value heads cannot be divided among {} processes; launch with "
    "FSDP 2"
)


@dataclass(frozen=True)
class Request:
    """A strategy by name, its name in the field, and the variable that asks for it."""

    strategy: str
    title: str
    variable: str


def requested_strategy(environment: Mapping[str, str]) -> Request | None:
    """Return the strategy that accelerate's launcher or a user asks for; None for data parallel or one process."""
    # Before FSDP and DeepSpeed, which accelerate can combine with these: they alone would not do what is asked for.
    for size, (strategy, title) in PARALLELISMS.items():
        if count(environment, PARALLEL + size) > 1:
            return Request(strategy, title, PARALLEL + size)
    if is_on(environment, "ACCELERATE_USE_DEEPSPEED"):
        stage = environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "")
        known = stage in ("1", "2", "3")
        title = f"DeepSpeed ZeRO-{stage}" if known else "DeepSpeed"
        return Request(f"zero{stage}" if known else "deepspeed", title, "ACCELERATE_USE_DEEPSPEED")
    if is_on(environment, "ACCELERATE_USE_FSDP"):
        version = environment.get("FSDP_VERSION", "1")
        return Request(f"fsdp{version}", f"FSDP {version}", "ACCELERATE_USE_FSDP")
    if is_on(environment, "ACCELERATE_USE_MEGATRON_LM"):
        return Request("megatron", "Megatron-LM", "ACCELERATE_USE_MEGATRON_LM")
    if is_on(environment, "ACCELERATE_USE_PARALLELISM_CONFIG"):
        return Request("mesh", "a mesh of devices", "ACCELERATE_USE_PARALLELISM_CONFIG")
    return None


def undivided_heads(config: Mapping[str, Any], processes: int) -> str:
    """Return why tensor parallel cannot divide the heads of a model's configuration among processes; empty if it can.

    Without a number of key-value heads, each head has its own.
    """
    text = config.get("text_config") or config
    known = (text.get(name) for name in ("num_key_value_heads", "num_attention_heads"))
    heads = next((one for one in known if isinstance(one, int)), 0)
    return HEADS.format(heads, processes) if heads % processes else ""


def is_alone_in_a_launch(environment: Mapping[str, str]) -> bool:
    """Return whether accelerate's launcher was asked for several processes and started one.

    It does with `--cpu`: it then sets the address to meet at, as for several processes, but no process's number.
    """
    launched = "ACCELERATE_USE_CPU" in environment and "ACCELERATE_MIXED_PRECISION" in environment
    return launched and "MASTER_ADDR" in environment and not environment.keys() & {"LOCAL_RANK", "WORLD_SIZE"}


def is_on(environment: Mapping[str, str], name: str) -> bool:
    """Return whether a variable has one of the values that accelerate reads as yes."""
    return environment.get(name, "").lower() in ("1", "true", "yes", "y", "on", "t")


def count(environment: Mapping[str, str], name: str) -> int:
    """Return a variable's number, 1 where it has none."""
    value = environment.get(name, "1")
    return int(value) if value.isdigit() else 1


# What a launcher adds to the environment of the processes for each strategy that training supports.
VARIABLES = {
    "ddp": {"ACCELERATE_USE_FSDP": "false"},
    "fsdp2": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
    "tensor": {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", PARALLEL + "TP_SIZE": "{processes}"},
    "zero2": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
    "zero3": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
    "fsdp2-offload": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"},
}


def variables_of(strategy: str, processes: int = 2) -> dict[str, str]:
    """Return the variables that ask for a strategy with so many processes.

    Raises UsageError for a strategy that training does not support.
    """
    if strategy not in VARIABLES:
        raise UsageError(
            f"unknown strategy {strategy!r}{nearest(strategy, VARIABLES)}; supported: {', '.join(VARIABLES)}"
        )
    return {name: value.format(processes=processes) for name, value in VARIABLES[strategy].items()}
