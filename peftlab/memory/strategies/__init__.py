"""How training on several devices changes the memory of each: what a strategy divides, and what it adds where."""

from __future__ import annotations

from peftlab.errors import UsageError, nearest
from peftlab.memory.strategies.ddp import Ddp
from peftlab.memory.strategies.division import Division, OwnPart, Weight
from peftlab.memory.strategies.fsdp2 import Fsdp2, Fsdp2Offload
from peftlab.memory.strategies.strategy import Strategy
from peftlab.memory.strategies.tensor import Tensor
from peftlab.memory.strategies.zero2 import Zero2
from peftlab.memory.strategies.zero3 import Zero3
from peftlab.world.open import STRATEGIES as TRAINED

__all__ = ["STRATEGIES", "Division", "OwnPart", "Strategy", "Weight", "find_strategy"]

STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Ddp("ddp", measured=True),
        Zero2("zero2", measured=True, takes_gradients=True),
        Fsdp2("fsdp2", divides=True, measured=True),
        Zero3("zero3", divides=True, measured=True),
        Fsdp2Offload("fsdp2-offload", divides=True, trained_by="fsdp2"),
        Tensor("tensor", divides=True, measured=True, offered=False, whole_head=True),
    )
}


def find_strategy(name: str) -> Strategy:
    """Return a strategy by name. Raises UsageError for one that training does not support."""
    trained = {key: one for key, one in STRATEGIES.items() if (one.trained_by or key) in TRAINED}
    if name not in trained:
        raise UsageError(f"unknown strategy {name!r}{nearest(name, trained)}; supported: {', '.join(trained)}")
    return trained[name]
