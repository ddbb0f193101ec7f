"""A run's identity: what must be equal to resume from its checkpoint, and what makes that inexact."""

from __future__ import annotations

import hashlib
from typing import Any

from pydantic import ValidationError

from peftlab.errors import StorageError
from peftlab.parameters.audit import Audit
from peftlab.recipe.schema import Recipe
from peftlab.runs.bench import Bench

# More steps, evaluation, logging and saving; never what the trained bytes depend on, as run.seed.
FREE_OF_RUN = "output device plan memory memory_snapshot save_every keep_checkpoints max_seconds stop_after".split() + [
    "log_every",
    "trackers",
]
MAY_CHANGE = ("training.steps", "training.epochs", "evaluation", *(f"run.{field}" for field in FREE_OF_RUN))


def describe_identity(recipe: Recipe, bench: Bench, audit: Audit, environment: dict[str, Any]) -> dict[str, Any]:
    """Return what a run that resumes is compared with: it must be equal, or the result is inexact."""
    data = bench.dataset.report
    return {
        "recipe": recipe.model_dump(mode="json"),
        "data": {part: data[part].get("sha256") for part in ("train", "evaluation", "test") if part in data},
        "base": {key: bench.base.source.get(key) for key in ("name", "revision", "fingerprint", "quantization")},
        "frozen": hashlib.sha256(repr(sorted(audit.frozen_fingerprints().items())).encode()).hexdigest(),
        "environment": {key: environment[key] for key in ("python", "versions", "device", "threads", "processes")},
    }


def refuse_changes(saved: dict[str, Any], here: dict[str, Any]) -> None:
    """Raise StorageError with the differences if recipe, data or base are not those of the checkpoint.

    Frozen weights with other bytes are another base too, unless versions or device differ.
    """
    changes = recipe_changes(saved["recipe"], here["recipe"])
    for part in ("data", "base"):
        changes |= differences(saved[part], here[part], f"{part} ")
    if not changes and saved["frozen"] != here["frozen"] and _made_equally(saved, here):
        old, new = (f"sha256 {one['frozen'][:12]}" for one in (saved, here))
        changes = {"base weights": (old, new)}
    _refuse(changes)


def refuse_changed_recipe(saved: dict[str, Any], here: dict[str, Any]) -> None:
    """Raise StorageError with the difference if a recipe changed in more than may change when a run resumes."""
    _refuse(recipe_changes(saved, here))


def present_form(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recorded recipe with the fields and forms of this version; unchanged where it does not fit them."""
    try:
        return Recipe.model_validate(recipe).model_dump(mode="json")
    except ValidationError:
        return recipe


def recipe_changes(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what differs between two recipes, except what may change."""
    old, new = present_form(old), present_form(new)
    if old["training"].get("fit") or new["training"]["fit"]:
        old, new = _with_whole_steps(old), _with_whole_steps(new)
    changes = differences(old, new)
    return {key: pair for key, pair in changes.items() if not any(_within(key, free) for free in MAY_CHANGE)}


def _with_whole_steps(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe with a step's rows in place of how they are split, which the plan decides with `training.fit`."""
    split = {"batch_size": None, "gradient_accumulation": None, "fit": None}
    training = recipe["training"]
    rows = training["batch_size"] * training["gradient_accumulation"]
    return {**recipe, "training": {**training, **split, "rows of a step": rows}}


def why_inexact(saved: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Return every reason why the resumed run may differ from one that never stopped."""
    changes = differences(saved["environment"], here["environment"])
    old, new = (present_form(one["recipe"])["training"] for one in (saved, here))
    changes |= differences(old, new, "training.")
    reasons = [f"{key}: {before} -> {now}" for key, (before, now) in changes.items()]
    if saved["frozen"] != here["frozen"]:
        reasons.append("the frozen weights have other bytes")
    return reasons


def differences(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Return dotted key to (old, new) for every leaf in which two trees of dicts differ."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return {} if old == new else {prefix.rstrip("."): (old, new)}
    found: dict[str, tuple[Any, Any]] = {}
    for key in dict.fromkeys([*old, *new]):
        nested = isinstance(old.get(key), dict) and isinstance(new.get(key), dict)
        found |= differences(old.get(key), new.get(key), f"{prefix}{key}{'.' if nested else ''}")
    return found


def _made_equally(saved: dict[str, Any], here: dict[str, Any]) -> bool:
    return all(saved["environment"][part] == here["environment"][part] for part in ("versions", "device"))


def _refuse(changes: dict[str, tuple[Any, Any]]) -> None:
    if changes:
        listed = "; ".join(f"{key}: {old!r} -> {new!r}" for key, (old, new) in changes.items())
        raise StorageError(
            f"the checkpoint belongs to another run: {listed}. Undo these changes, or start a new run with another "
            "run.output"
        )


def _within(key: str, section: str) -> bool:
    return key == section or key.startswith(section + ".")
