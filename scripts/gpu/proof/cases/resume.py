"""`verify-resume` on this device: whether a stopped run equals a straight one, with and without fixed kernels."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from proof.bench import Bench, tiny_file

CORES_EACH = 2


def run(bench: Bench) -> None:
    from peftlab.recipe.schema import Run

    known = "deterministic" in Run.model_fields
    jobs = [
        (f"{method}{', deterministic' if fixed else ''}", method, optimizer, fixed)
        for method, optimizer in chosen(bench)
        for fixed in ((False, True) if known and optimizer is None and not bench.pretend else (known,))
    ]
    if not known:
        with bench.case("deterministic") as case:
            case["says"] = "this version has no run.deterministic"
    at_once = max(1, (os.cpu_count() or 1) // CORES_EACH)
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(lambda job: prove(bench, *job), jobs))


def chosen(bench: Bench) -> tuple[tuple[str, str | None], ...]:
    """Return methods and optimizers: full fine-tuning of all layers also with those that only CUDA has."""
    if bench.pretend:
        return (("lora", None),)
    return (("lora", None), ("qlora", None), ("full", None), ("full", "adamw_8bit"), ("full", "paged_adamw"))


def prove(bench: Bench, name: str, method: str, optimizer: str | None, fixed: bool) -> None:
    with bench.case(f"{name}{f', {optimizer}' if optimizer else ''}") as case:
        case |= verify(bench, method, optimizer, fixed)


def verify(bench: Bench, method: str, optimizer: str | None, fixed: bool) -> dict[str, Any]:
    """Return what `verify-resume` found; without fixed kernels on CUDA nothing is claimed."""
    from peftlab.runs.verify import verify_resume

    settings = bench.overrides({"training.optimizer": optimizer} if optimizer else {})
    settings = [one for one in settings if not one.startswith("training.steps")]  # verify_resume sets them
    settings += ["run.deterministic=true"] * fixed
    found = verify_resume(tiny_file(method), settings, steps=4, stop_after=2)
    lines = [f"exact: {found['exact']}", f"{len(found['differ'])} of {found['compared']} states differ"]
    if found.get("repeat_differs") is not None:
        lines.append(f"{len(found['repeat_differs'])} between two straight runs")
    claimed = {"ok": found["exact"]} if fixed or bench.pretend else {}
    return claimed | found | {"says": "; ".join([*lines, *found["reasons"]])}
