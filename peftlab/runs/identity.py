"""A run's identity: what must be equal to resume from its checkpoint, and what makes that inexact."""

from __future__ import annotations

import hashlib
from typing import Any

from pydantic import ValidationError

from peftlab.data.fingerprints import fingerprint_template, fingerprint_tokenizer
from peftlab.errors import StorageError
from peftlab.nested import differences
from peftlab.parameters.audit import Audit
from peftlab.recipe.schema import Data, Recipe
from peftlab.recipe.speed import Speed
from peftlab.runs.bench import Bench
from peftlab.tasks.formats import CHAT
from peftlab.world.open import STRATEGIES

# More steps, evaluation, logging and saving; never what the trained bytes depend on, as run.seed.
FREE_OF_RUN = "output device plan memory memory_snapshot save_every keep_checkpoints max_seconds stop_after".split() + [
    "log_every",
    "trackers",
    "deterministic",
]
MAY_CHANGE = (
    "training.steps",
    "training.epochs",
    "training.speed",
    "training.gradient_checkpointing",  # no bit of a result depends on it
    "evaluation",
    *(f"run.{field}" for field in FREE_OF_RUN),
)


# What versions did that had no such field of `data` yet.
EARLIER = {"group_by": "row", "long": "cut", "truncate": "left"}
# An earlier version had none of the speed-ups that its record does not name.
EARLIER_SPEED = dict.fromkeys(Speed.model_fields, "off")
# How the rows of a step are split.
SPLIT = ("batch_size", "gradient_accumulation")
Shares = tuple[int, int]
PARTS = ("train", "evaluation", "test")
# Of a recipe's evaluation, what does not change what is measured of a row: how often, which metrics, how many at once.
NOT_MEASURING = {"every", "metrics", "best", "patience", "batch_size", "latency"}


def describe_identity(recipe: Recipe, bench: Bench, audit: Audit, environment: dict[str, Any]) -> dict[str, Any]:
    """Return what a run that resumes is compared with: it must be equal, or the result is inexact."""
    data = {part: bench.dataset.report[part] for part in PARTS if part in bench.dataset.report}
    return {
        "recipe": recipe.model_dump(mode="json"),
        "data": {name: part.get("sha256") for name, part in data.items()},
        "tokens": {name: part.get("tokens_sha256") for name, part in data.items()},
        "labels": bench.dataset.labels,
        "tokenizer": fingerprint_tokenizer(bench.tokenizer),
        "template": fingerprint_template(bench.tokenizer) if bench.dataset.format == CHAT else None,
        "base": {key: bench.base.source.get(key) for key in ("name", "revision", "fingerprint", "quantization")},
        "frozen": hashlib.sha256(repr(sorted(audit.frozen_fingerprints().items())).encode()).hexdigest(),
        "environment": {
            key: environment[key] for key in ("python", "versions", "device", "threads", "processes", "strategy")
        },
    }


def refuse_changes(saved: dict[str, Any], here: dict[str, Any]) -> None:
    """Raise StorageError with the differences if recipe, rows or base are not those of the checkpoint.

    Rows are compared as the tokens and targets that the model gets, in checkpoints of earlier versions by their
    content. Frozen weights with other bytes are another base too, unless versions or device differ.
    """
    shares = count_row_processes(saved["environment"]), count_row_processes(here["environment"])
    changes = recipe_changes(saved["recipe"], here["recipe"], shares)
    changes |= differences(saved["base"], here["base"], "base ")
    changes |= row_changes(saved, here)
    if not changes and saved["frozen"] != here["frozen"] and _made_equally(saved, here):
        old, new = (f"sha256 {one['frozen'][:12]}" for one in (saved, here))
        changes = {"base weights": (old, new)}
    _refuse(changes)


def row_changes(saved: dict[str, Any], here: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what differs in what the model gets of the rows, with the likely reason first."""
    if "tokens" not in saved:
        return differences(saved["data"], here["data"], "data ")
    changes = differences(saved["tokens"], here["tokens"], "tokens of data.")
    changes |= differences(saved["labels"], here["labels"], "labels")
    reasons = {"template": "chat template", "tokenizer": "tokenizer"}
    found = {title: (saved[key], here[key]) for key, title in reasons.items() if saved[key] != here[key]}
    if changes and not found and saved["data"] == here["data"]:
        changes["template's output"] = ("the same template wrote other text", "as one does that writes today's date")
    return {key: (_short(old), _short(new)) for key, (old, new) in (found | changes).items()}


def refuse_other_rows(recorded: dict[str, Any], here: dict[str, Any], with_checkpoint: bool = False) -> None:
    """Raise StorageError where the reports of a run's data, of an earlier attempt and now, are of other rows.

    A checkpoint is compared by `refuse_changes`, which knows the reasons; general text is not among what it has.
    """
    changes = {}
    for part in (*(() if with_checkpoint else PARTS), "general"):
        old, new = recorded.get(part) or {}, here.get(part) or {}
        key = "tokens_sha256" if "tokens_sha256" in old else "sha256"  # version 0.1.0 wrote the second alone
        if key in old and old[key] != new.get(key):
            changes[f"{'tokens of ' if key == 'tokens_sha256' else ''}data.{part}"] = (
                _short(old[key]),
                _short(new.get(key)),
            )
    _refuse(changes)


def measuring_changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return which settings differ between two recorded recipes that decide what is measured of a row."""
    former, now = (_measuring(one) for one in (old, new))
    return list(differences(former, now, "evaluation."))


def _measuring(recipe: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in present_form(recipe)["evaluation"].items() if name not in NOT_MEASURING}


def refuse_changed_recipe(saved: dict[str, Any], here: dict[str, Any], shares: Shares = (1, 1)) -> None:
    """Raise StorageError with the difference if a recipe changed in more than may change when a run resumes.

    `shares` are the numbers of processes that share the rows of a step, then and now.
    """
    _refuse(recipe_changes(saved, here, shares))


def count_row_processes(environment: dict[str, Any]) -> int:
    """Return among how many processes a recorded run divided the rows of a step."""
    strategy = STRATEGIES.get(environment.get("strategy", ""))
    return 1 if strategy is not None and strategy.shares_rows else environment["processes"]


def present_form(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recorded recipe with the fields and forms of this version; unchanged where it does not fit them."""
    try:
        return Recipe.model_validate(_with_earlier_settings(recipe)).model_dump(mode="json")
    except ValidationError:
        return recipe


def earlier_settings(recorded: dict[str, Any]) -> list[str]:
    """Return as overrides what the version that recorded a recipe did, where it had no field for it yet."""
    missing = [field for field in EARLIER if field not in recorded.get("data", EARLIER)]
    slow = [field for field in EARLIER_SPEED if field not in recorded_speed(recorded)]
    return [
        *(f"data.{field}={EARLIER[field]}" for field in missing),
        *(f"training.speed.{field}={EARLIER_SPEED[field]}" for field in slow),
    ]


def recorded_speed(recorded: dict[str, Any]) -> dict[str, Any]:
    """Return the switches of speed-ups that a recorded recipe names."""
    training = recorded.get("training")
    return training.get("speed") or {} if isinstance(training, dict) else {}


def as_recorded(recipe: Recipe, recorded: dict[str, Any]) -> Recipe:
    """Return a recipe that resumes a run, with what an earlier version did where it had no field for it yet."""
    data = recorded.get("data", EARLIER)
    default = {name: field.get_default() for name, field in Data.model_fields.items()}
    update = {
        name: value
        for name, value in EARLIER.items()
        if name not in data and getattr(recipe.data, name) == default[name]
    }
    speed = EARLIER_SPEED | {name: value for name, value in recipe.training.speed if value != "auto"}
    speed = {name: value for name, value in speed.items() if name not in recorded_speed(recorded)}
    training = {"speed": recipe.training.speed.model_copy(update=speed)}
    return recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update=update),
            "training": recipe.training.model_copy(update=training),
        }
    )


def _with_earlier_settings(recorded: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(recorded.get("data"), dict) or not isinstance(recorded.get("training"), dict):
        return recorded
    speed = EARLIER_SPEED | recorded_speed(recorded)
    training = {**recorded["training"], "speed": speed}
    return {**recorded, "data": EARLIER | recorded["data"], "training": training}


def recipe_changes(old: dict[str, Any], new: dict[str, Any], shares: Shares = (1, 1)) -> dict[str, tuple[Any, Any]]:
    """Return what differs between two recipes, except what may change.

    With another number of processes, that is how a step with the same rows is split.
    """
    old, new = present_form(old), present_form(new)
    if shares[0] != shares[1] and step_rows(old) * shares[0] == step_rows(new) * shares[1]:
        new = {**new, "training": new["training"] | {name: old["training"][name] for name in SPLIT}}
    if old["training"].get("fit") or new["training"]["fit"]:
        old, new = _with_whole_steps(old), _with_whole_steps(new)
    changes = differences(old, new)
    if None in changes.get("data.format", ()):  # recognised from the rows, which are compared themselves
        del changes["data.format"]
    return {key: pair for key, pair in changes.items() if not any(_within(key, free) for free in MAY_CHANGE)}


def _with_whole_steps(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe with a step's rows in place of how they are split, which the plan decides with `training.fit`."""
    split = dict.fromkeys((*SPLIT, "fit"))
    return {**recipe, "training": {**recipe["training"], **split, "rows of a step": step_rows(recipe)}}


def step_rows(recipe: dict[str, Any]) -> int:
    """Return the rows that each process has of a step."""
    return recipe["training"]["batch_size"] * recipe["training"]["gradient_accumulation"]


def why_inexact(saved: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Return every reason why the resumed run may differ from one that never stopped."""
    changes = environment_changes(saved["environment"], here["environment"])
    old, new = (present_form(one["recipe"]) for one in (saved, here))
    changes |= differences(_computing(old), _computing(new), "training.")
    changes |= differences(old["run"]["deterministic"], new["run"]["deterministic"], "run.deterministic")
    changes |= differences(_choosing(old), _choosing(new))
    rows = [step_rows(one) * count_row_processes(two["environment"]) for one, two in ((old, saved), (new, here))]
    changes |= {"rows of a step": (rows[0], rows[1])} if rows[0] != rows[1] else {}
    reasons = [f"{key}: {before} -> {now}" for key, (before, now) in changes.items()]
    if saved["frozen"] != here["frozen"]:
        reasons.append("the frozen weights have other bytes")
    return reasons


def environment_changes(saved: dict[str, Any], here: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what differs between two environments; a strategy that the number of processes says is not named.

    Earlier versions wrote no strategy, and had only those.
    """
    changes = differences(saved, here)
    changes.pop("strategy", None)
    usual = ["ddp" if one["processes"] > 1 else "single" for one in (saved, here)]
    found = [one.get("strategy", name) for one, name in zip((saved, here), usual, strict=True)]
    return changes if found == usual or found[0] == found[1] else changes | {"strategy": (found[0], found[1])}


def _computing(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of training that bits of the result depend on: layers are recomputed to the same bits."""
    return {name: value for name, value in recipe["training"].items() if name != "gradient_checkpointing"}


def _choosing(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return what decides where training ends and which weights are kept, unless both are simply the last step's."""
    evaluation, run = recipe["evaluation"], recipe["run"]
    averaged = recipe["training"]["average"]["last"] is not None
    found = {"run.save_every": run["save_every"]} if averaged else {}
    if run["keep"] == "last" and evaluation["patience"] is None:
        return found
    generation = {name: value for name, value in evaluation["generation"].items() if name != "examples"}
    settings = {**evaluation, "generation": generation}
    names = ("best", "patience", "every", "threshold", "texts", "generation")
    return found | {f"evaluation.{name}": settings[name] for name in names}


def _short(value: Any) -> Any:
    return value[:12] if isinstance(value, str) and len(value) == 64 else value


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
