"""What makes two runs the same run: recipe, data, weights and versions, in one hash."""

from __future__ import annotations

import json
from datetime import date
from functools import cache, lru_cache
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from peftlab.data.sources import BUILTIN, GRAMMAR, local_files
from peftlab.files import user_path
from peftlab.models.reference import resolve
from peftlab.recipe.schema import Data, Model, Recipe, list_sources
from peftlab.runs.versions import describe_versions
from peftlab.tasks import possible_formats
from peftlab.tasks.formats import CHAT

# Where a run is stored, how it is watched and what is measured of it afterwards does not change what it computes.
NOT_IDENTITY = {
    "run.output", "run.log_every", "run.trackers", "run.save_every", "run.keep_checkpoints", "run.plan",
    "run.max_seconds", "evaluation.latency",
    "data.date",  # it counts as the day, where a chat template writes it
}  # fmt: skip
# The recipe's fields when runs were first recorded: all of them count. A field that came later counts only where it
# is not its default, so that a run recorded before the field was there is still found.
FIRST_FIELDS = {
    "model": "name tokenizer revision task dtype init attention trust_remote_code",
    "data": "train evaluation test general format columns template max_length allow_dropped train_rows evaluation_rows "
    "test_rows seed",
    "training": "steps epochs batch_size gradient_accumulation learning_rate schedule warmup weight_decay optimizer "
    "clip gradient_checkpointing fit precision frozen_dropout",
    "evaluation": "every metrics batch_size latency generation",
    "evaluation.generation": "max_new_tokens beams temperature top_p rows examples",
    "run": "output seed device plan memory memory_snapshot save_every keep_checkpoints max_seconds stop_after "
    "log_every trackers",
    "method": "type unfreeze freeze rank alpha dropout targets bias init rslora dora quantization double_quantization "
    "compute_dtype layers bottleneck reduction_factor placement activation train_norms modules kind length projection "
    "projection_dim terms norms add_missing",
}
# Counts up when the same recipe and files give other rows. 2: splits by prompt, whole turns and chunks.
ROWS_VERSION = 2
# What a field without a value meant before None meant it: the format that rows of that time were recognised as.
FORMER_DEFAULTS = {"data.format": "completion"}
# What the plan decides where a field leaves it open was once the field's default: it changes no result.
LEFT_OPEN = {"training.gradient_checkpointing": ("auto", False)}
FIRST = {*FIRST_FIELDS, *(f"{section}.{name}" for section, names in FIRST_FIELDS.items() for name in names.split())}


def hash_run(recipe: Recipe) -> str:
    """Return the hash of what a run computes: 16 hexadecimal digits.

    Local weights and data count by their content; what is on a hub counts by its name and revision.
    """
    identity = {
        "recipe": describe_section(recipe),
        "data": {part: fingerprint_source(getattr(recipe.data, part)) for part in ("train", "evaluation", "test")},
        "general": fingerprint_source(recipe.data.general),
        "model": fingerprint_model(recipe.model.name, recipe.model.revision),
        **describe_start(recipe),
        **describe_mean(recipe),
        "versions": describe_versions(),
        **describe_tokens(recipe),
    }
    return sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def describe_start(recipe: Recipe) -> dict[str, Any]:
    """Return the content of the weights that training starts from, where the recipe names some."""
    wanted = recipe.method.from_
    if wanted is None:
        return {}
    from peftlab.runs.start import weights_folder  # loads torch, which the hash of other recipes does not need

    return {"start": hash_folder(weights_folder(user_path(wanted)), "*.safetensors")}


def describe_mean(recipe: Recipe) -> dict[str, Any]:
    """Return how many steps are between the checkpoints, where the result is their mean."""
    return {} if recipe.training.average.last is None else {"save_every": recipe.run.save_every}


def describe_tokens(recipe: Recipe) -> dict[str, Any]:
    """Return what else decides which tokens the rows have, where it is not in the model's own files.

    That is a tokenizer of another place, and the day where the chat template writes it.
    """
    found: dict[str, Any] = {"rows": ROWS_VERSION}
    if recipe.model.tokenizer is not None:
        found["tokenizer"] = fingerprint_model(recipe.model.tokenizer, None)
    if CHAT in possible_formats(recipe.task, recipe.data.format):
        tokenizer = load_tokenizer(recipe.model)
        if is_dated(tokenizer, recipe.data):
            found["day"] = recipe.data.date or date.today().isoformat()
    return found


@lru_cache(maxsize=4)  # each trial asks for the tokenizer of its variant, which takes 0.1 s and more to load
def load_tokenizer(section: Model) -> Any:
    """Return the tokenizer of a recipe's model, to be read only."""
    from peftlab.models.tokenizer import load_tokenizer  # loads transformers, which rows without chats do not need

    return load_tokenizer(section)


def is_dated(tokenizer: Any, data: Data) -> bool:
    """Whether the chat template writes today's date into a chat."""
    from peftlab.data.chat import ChatTemplate

    probe = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
    return bool(tokenizer.chat_template) and ChatTemplate(tokenizer, data.template_kwargs).calls("strftime_now", probe)


def may_write_day(recipe: Recipe) -> bool:
    """Whether the chat template can write today's date into some chat, such as one with tools."""
    if CHAT not in possible_formats(recipe.task, recipe.data.format):
        return False
    return "strftime_now" in str(load_tokenizer(recipe.model).chat_template)


def describe_section(section: BaseModel, path: str = "") -> dict[str, Any]:
    """Return the values of a recipe's section (or of the recipe) that count, sections within it likewise."""
    dumped, described = section.model_dump(mode="json"), {}
    for attribute, field in type(section).model_fields.items():
        name, value = field.alias or attribute, getattr(section, attribute)
        key = f"{path}.{name}" if path else name
        if key in NOT_IDENTITY or (key not in FIRST and value == field.get_default(call_default_factory=True)):
            continue
        if isinstance(value, BaseModel) and key in FIRST - FIRST_FIELDS.keys():  # it was one word: its present type
            changed = describe_section(value, key)
            described[name] = {"type": dumped[name]["type"], **changed} if changed else dumped[name]["type"]
        else:
            described[name] = describe_section(value, key) if isinstance(value, BaseModel) else dumped[name]
            if value is None:
                described[name] = FORMER_DEFAULTS.get(key)
            if key in LEFT_OPEN and value == LEFT_OPEN[key][0]:
                described[name] = LEFT_OPEN[key][1]
    return described


def fingerprint_source(source: Any) -> str | None:
    """Return what identifies a source of rows: its files' content, or its name where it is on a hub."""
    if isinstance(source, tuple):
        return sha256(repr([fingerprint_source(one.source) for one in list_sources(source)]).encode()).hexdigest()
    if not isinstance(source, str):
        return None if source is None else str(source)
    if files := local_files(source):
        hashes = [hash_file(file) for file in files]
        return hashes[0] if len(hashes) == 1 else sha256(repr(hashes).encode()).hexdigest()
    match = GRAMMAR.fullmatch(source.strip())
    place = match["source"].strip() if match else source
    if place.startswith("builtin:"):
        return hash_folder(BUILTIN / place.removeprefix("builtin:"), "*.jsonl*")
    path = Path(place).expanduser()
    if path.is_dir():
        return hash_folder(path, "*")
    return place


@cache
def fingerprint_model(name: str, revision: str | None) -> str:
    """Return what identifies a base model: its files' content, or hub id and revision."""
    place = resolve(name, revision)
    if place.folder is None:
        return f"{place.hub_id}@{place.revision or 'main'}"
    return hash_file(place.folder / place.gguf_file) if place.gguf_file else hash_folder(place.folder, "*")


@cache
def hash_folder(folder: Path, pattern: str) -> str:
    """Return the hash of the files right in a folder, names and contents."""
    digest = sha256()
    for path in sorted(folder.glob(pattern)):
        if path.is_file():
            digest.update(f"{path.name}\0{hash_file(path)}\n".encode())
    return digest.hexdigest()


@cache
def hash_file(path: Path) -> str:
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()
