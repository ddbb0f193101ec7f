"""Optimizer states in 8 bits and in pages: whether large tensors really have them, also after a restore."""

from __future__ import annotations

from collections import Counter
from typing import Any

from proof.bench import FLOAT32, Bench

TOLERANCE = 1e-3
OPTIMIZERS = ("adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit")


def run(bench: Bench) -> None:
    for optimizer in OPTIMIZERS[:1] if bench.pretend else OPTIMIZERS:
        with bench.case(optimizer) as case:
            case |= look(bench, optimizer)


def look(bench: Bench, optimizer: str) -> dict[str, Any]:
    """Return types and pages of the states of full fine-tuning after two steps, and after they were restored."""
    from peftlab.checkpoint.tensors import load_state, save_state
    from peftlab.runs.setup import renew_optimizer
    from proof.training import build

    built = build(bench.tiny("full", FLOAT32 | {"training.optimizer": optimizer, "method.layers": "all"}))
    setup = built.setup
    for number in (1, 2):
        built.step(number)
    first = describe(setup)
    folder = bench.folder / optimizer
    folder.mkdir()
    # As a checkpoint does it: the captured tensors are the live ones, which the next step changes.
    save_state(folder, "state", setup.world.capture(setup.model, setup.optimizer))
    loss = built.step(3)[0]
    renew_optimizer(setup)
    setup.world.restore(setup.model, setup.optimizer, load_state(folder, "state"))
    restored = describe(setup)
    again = built.step(3)[0]
    wrong = [*first["wrong"], *(f"after restore: {line}" for line in restored["wrong"])]
    types = ", ".join(f"{count} {name}" for name, count in first["large"].items())
    if abs(again / loss - 1) > TOLERANCE:
        wrong.append(f"the third step's loss is {again:.5f} after a restore, and was {loss:.5f}")
    return {
        "ok": not wrong,
        "first": first,
        "restored": restored,
        "losses": [loss, again],
        "says": "; ".join(wrong) or f"large states: {types}; the same after a restore",
    }


def describe(setup: Any) -> dict[str, Any]:
    """Return the large states' types, in pages or not, the bytes of all, and where they differ from the plan's."""
    from proof.training import type_name

    large, wrong, total = Counter(), [], 0
    config = setup.recipe.training.optimizer
    for parameter, state in setup.optimizer.state.items():
        planned = config.state_tensors(parameter.numel())
        tensors = {name: value for name, value in state.items() if hasattr(value, "dtype") and value.numel() > 1}
        for name, value in tensors.items():
            paged = bool(getattr(value, "is_paged", False))
            total += value.numel() * value.itemsize
            if value.numel() == parameter.numel() >= 100_000:
                large[f"{type_name(value)}{' in pages' if paged else ''}"] += 1
            if name in planned and planned[name].dtype != type_name(value):
                wrong.append(f"{name} of {parameter.numel()} numbers is {type_name(value)}, not {planned[name].dtype}")
            if paged == (name in planned) and value.numel() == parameter.numel():
                wrong.append(f"{name} of {parameter.numel()} numbers is {'' if paged else 'not '}in pages")
    return {"large": dict(large), "bytes": total, "wrong": wrong[:5]}
