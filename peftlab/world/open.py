"""Opens this process's world: the strategy of the launch, refused in one line where there is none for it."""

from __future__ import annotations

import atexit
import importlib.util
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from accelerate import Accelerator, PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, filter_trackers
from accelerate.utils import LoggerType
from torch import distributed

from peftlab.errors import LaunchError, MissingRequirementError, UsageError, nearest
from peftlab.recipe.schema import Recipe
from peftlab.world.base import World
from peftlab.world.ddp import Ddp
from peftlab.world.determinism import use_deterministic_algorithms
from peftlab.world.fsdp2 import Fsdp2
from peftlab.world.hardware import pick_device
from peftlab.world.meeting import meeting
from peftlab.world.request import is_alone_in_a_launch, requested_strategy
from peftlab.world.single import Single
from peftlab.world.tensor import Tensor
from peftlab.world.zero2 import Zero2
from peftlab.world.zero3 import Zero3

STRATEGIES: dict[str, type[World]] = {world.strategy: world for world in (Single, Ddp, Fsdp2, Tensor, Zero2, Zero3)}

NOT_INSTALLED = (
    "the launch's strategy needs {0}, which is not installed; pip install 'peftlab[{0}]', or launch with DDP"
)
ALONE = (
    "the launcher was asked for several processes and started one (accelerate does that with --cpu); "
    "for several on the CPU give it distributed_type MULTI_GPU and use_cpu true in a configuration file"
)
PARTED = (
    "a run in this process ended with an error, and has left the other processes of the launch; launch again for "
    "another run"
)


def open_world(device: str, deterministic: bool = False) -> World:
    """Return this process's world for `auto`, `cpu` or `cuda`; joins the other processes of the launch.

    `deterministic` makes torch refuse what does not give the same bytes each time, until the world is closed.
    Raises UsageError for a strategy that is not supported, MissingRequirementError for a device that is not here and
    LaunchError where another process ends before all have met.
    """
    refuse_unsupported(os.environ)
    undo_settings = use_deterministic_algorithms() if deterministic else None
    request = requested_strategy(os.environ)
    wanted = STRATEGIES[request.strategy] if request else Ddp
    if wanted.package and importlib.util.find_spec(wanted.package) is None:
        raise MissingRequirementError(NOT_INSTALLED.format(wanted.package))
    for name in wanted.dropped_variables:
        os.environ.pop(name, None)
    notes = [ALONE] if is_alone_in_a_launch(os.environ) else []
    on_cpu = pick_device(device).type == "cpu"
    with _without(*wanted.hidden_variables), meeting():
        state = _meet(on_cpu)
        kind = str(state.distributed_type.value)
        if request is None and kind not in ("NO", "MULTI_CPU", "MULTI_GPU"):
            raise UsageError(unsupported(kind, "this machine"))
        if state.num_processes == 1 and (request is None or wanted.alone):
            wanted, notes = Single, [*notes, wanted.alone] if request else notes
        # The training step does its own autocast, so that logits are not copied to float32.
        world = wanted(Accelerator(cpu=on_cpu, mixed_precision="no"), notes)
    if undo_settings is not None:
        world.undo_settings = undo_settings
    return world


def _meet(on_cpu: bool) -> PartialState:
    """Return what this process is among those of its launch; they meet at the first run, and part when they end.

    Raises LaunchError where an error has parted them.
    """
    together = distributed.is_initialized()
    state = PartialState(cpu=on_cpu)
    if not together and distributed.is_initialized():
        atexit.register(state.destroy_process_group)
    if state.num_processes > 1 and not distributed.is_initialized():
        raise LaunchError(PARTED, [])
    return state


def refuse_unsupported(environment: Mapping[str, str] = os.environ) -> None:
    """Raise UsageError if the launch asks for a strategy that is not in `STRATEGIES`.

    It is an error of usage and not of a missing requirement: nothing can be installed, the launch must change.
    """
    request = requested_strategy(environment)
    if request is not None and request.strategy not in STRATEGIES:
        raise UsageError(unsupported(request.title, request.variable))


def unsupported(title: str, place: str) -> str:
    """Return the line that refuses a strategy asked for by `place`."""
    return (
        f"{place} asks for {title}, which peftlab does not support; it trains on one device, or on several with "
        "DDP, FSDP 2, tensor parallel, ZeRO-2 or ZeRO-3: use a launcher configuration with distributed_type NO, "
        "MULTI_GPU, FSDP (fsdp_version: 2) or DEEPSPEED (zero_stage: 2 or 3)"
    )


def refuse_recipe(world: World, recipe: Recipe) -> None:
    """Raise UsageError for a recipe that the launch's strategy cannot train, before anything is loaded."""
    if reason := world.why_not(recipe, world.device):
        world.close()
        raise UsageError(reason)


def refuse_missing_trackers(names: Collection[str]) -> None:
    """Raise MissingRequirementError for a tracker that is unknown, or whose library is not installed."""
    # Those of accelerate, and those that a program has registered with it.
    known = sorted({*LoggerType.list(), *LOGGER_TYPE_TO_CLASS} - {LoggerType.ALL.value})
    if unknown := [name for name in names if name not in known]:
        close = nearest(unknown[0], known)
        raise MissingRequirementError(f"run.trackers: {unknown[0]!r} is unknown{close}; known: {', '.join(known)}")
    found = filter_trackers(list(names), logging_dir="-")
    if missing := sorted(set(names) - {str(tracker) for tracker in found}):
        raise MissingRequirementError(f"run.trackers: {', '.join(missing)} is not installed; pip install it")


@contextmanager
def _without(*names: str) -> Iterator[None]:
    """Keep variables out of this process's environment for as long as the context is open."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
