"""What makes two runs the same run: recipe, data, weights and versions, in one hash."""

from __future__ import annotations

import importlib.metadata
import json
from functools import cache
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from peftlab import __version__
from peftlab.data.files import file_kind
from peftlab.data.sources import BUILTIN, GRAMMAR
from peftlab.models.reference import resolve
from peftlab.recipe.schema import Recipe
from peftlab.runs.environment import LIBRARIES

# Where a run lies, how it is watched and what is measured of it afterwards does not change what it computes.
NOT_IDENTITY = {
    "run": {"output", "log_every", "trackers", "save_every", "keep_checkpoints", "plan", "max_seconds"},
    "evaluation": {"latency"},
}


def hash_run(recipe: Recipe) -> str:
    """Return the hash of what a run computes: 16 hexadecimal digits.

    Local weights and data count by their content; what is on a hub counts by its name and revision.
    """
    values = recipe.model_dump(mode="json")
    for section, left_out in NOT_IDENTITY.items():
        values[section] = {key: value for key, value in values[section].items() if key not in left_out}
    identity = {
        "recipe": values,
        "data": {part: fingerprint_source(getattr(recipe.data, part)) for part in ("train", "evaluation", "test")},
        "general": fingerprint_source(recipe.data.general),
        "model": fingerprint_model(recipe.model.name, recipe.model.revision),
        "versions": list_versions(),
    }
    return sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


@cache
def list_versions() -> dict[str, str | None]:
    return {"peftlab": __version__} | {name: find_version(name) for name in LIBRARIES}


def find_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def fingerprint_source(source: Any) -> str | None:
    """Return what tells a source of rows from another: its files' content, or its name where it is on a hub."""
    if not isinstance(source, str):
        return None if source is None else str(source)
    match = GRAMMAR.fullmatch(source.strip())
    place = match["source"].strip() if match else source
    if place.startswith("builtin:"):
        return hash_folder(BUILTIN / place.removeprefix("builtin:"), "*.jsonl*")
    path = Path(place).expanduser()
    if path.is_dir():
        return hash_folder(path, "*")
    return hash_file(path) if file_kind(place) and path.is_file() else place


@cache
def fingerprint_model(name: str, revision: str | None) -> str:
    """Return what tells a base model from another: its files' content, or hub id and revision."""
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
