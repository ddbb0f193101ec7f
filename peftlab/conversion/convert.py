"""A foreign configuration file as a recipe: read, recognised by its keys, taken key by key, and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftlab.conversion.axolotl import AXOLOTL
from peftlab.conversion.llama_factory import LLAMA_FACTORY
from peftlab.conversion.peer import Peer
from peftlab.conversion.peft import PEFT
from peftlab.conversion.sheet import Fate, Line, Sheet
from peftlab.conversion.torchtune import TORCHTUNE
from peftlab.conversion.trl import TRL
from peftlab.conversion.trl_command import parse_command
from peftlab.conversion.variables import merge
from peftlab.errors import Problem, RecipeError, UsageError
from peftlab.nested import flatten
from peftlab.recipe.dump import dump_values
from peftlab.recipe.load import parse_recipe
from peftlab.recipe.yaml_source import dotted, parse_yaml, read_text

PEERS = {peer.name: peer for peer in (AXOLOTL, LLAMA_FACTORY, TRL, TORCHTUNE, PEFT)}
SHOWN_IN_FILE = (Fate.NO_COUNTERPART, Fate.UNKNOWN)


@dataclass(frozen=True)
class Conversion:
    """A recipe made of a configuration: its text, what became of each key, and what `check` says of it."""

    peer: Peer
    recipe: dict[str, Any]
    text: str
    lines: list[Line]
    notes: list[str]
    problems: list[Problem]


def convert(path: Path, kind: str | None = None) -> Conversion:
    """Return the recipe of a configuration file of another trainer; `kind` names the trainer where keys do not.

    Raises RecipeError for a file that cannot be read, UsageError for one of no known kind, or of another training.
    """
    values, places, command = read_values(path)
    if command and kind not in (None, TRL.name):
        raise UsageError(f"{path}: is a command line, not a YAML of {kind}")
    peer = TRL if command else recognise(values, path, kind)
    sheet = Sheet(flatten(values) if peer.nested else values, places)
    peer.fill(sheet)
    sheet.close()
    text = header(path, peer, sheet) + dump_values(sheet.sections())
    return Conversion(peer, sheet.sections(), text, sheet.lines, sheet.notes, find_problems(text))


def read_values(path: Path) -> tuple[dict[str, Any], dict[str, int], bool]:
    """Return the keys of a file, the line of each, and whether they come from a command line."""
    text = read_text(path)
    try:
        source = parse_yaml(text, str(path))
    except RecipeError:
        if "--" not in text:
            raise
        return read_command(text, path)
    if isinstance(source.value, dict):
        if source.problems:
            raise RecipeError(source.problems)
        return merge(source.value), {dotted(key): line for key, line in source.lines.items()}, False
    return read_command(text, path)


def read_command(text: str, path: Path) -> tuple[dict[str, Any], dict[str, int], bool]:
    """Return the options of a command, over those of the YAML that its `--config` names."""
    values = parse_command(text)
    if not (name := values.pop("config", None)):
        return values, {}, True
    found = [file for file in (path.parent / str(name), Path(str(name))) if file.is_file()]
    if not found:
        raise UsageError(f"{path}: --config {name}: no such file beside it; most of the keys are there")
    below, _, command = read_values(found[0])
    if command:
        raise UsageError(f"{path}: --config {name}: is not a YAML of keys")
    return below | values, {}, True


def recognise(values: Mapping[str, Any], path: Path, kind: str | None) -> Peer:
    """Return the kind of configuration that has most of these keys. Raises UsageError where two or none do."""
    if kind is not None:
        if kind not in PEERS:
            raise UsageError(f"--kind {kind}: known kinds are {', '.join(PEERS)}")
        return PEERS[kind]
    if {"method", "training"} <= values.keys():
        raise UsageError(f"{path}: is a recipe already")
    counts = {name: peer.count_marks(values) for name, peer in PEERS.items()}
    best = [name for name, count in counts.items() if count and count == max(counts.values())]
    if len(best) != 1:
        fit = f"fits {' and '.join(best)}" if best else f"has no key of {', '.join(PEERS)}"
        raise UsageError(f"{path}: {fit}; say which it is with --kind")
    return PEERS[best[0]]


def header(path: Path, peer: Peer, sheet: Sheet) -> str:
    """Return the comment at the top of the recipe: where it is from, and what is not in it."""
    lines = [f"# From {path.name} of {peer.title}."]
    lines += [f"# {line.fate.value}: {line}" for line in sheet.lines if line.fate in SHOWN_IN_FILE]
    lines += [f"# note: {note}" for note in sheet.notes]
    return "".join(f"{line}\n" for line in lines)


def find_problems(text: str) -> list[Problem]:
    """Return what `peftlab check` would say of a recipe's text."""
    try:
        parse_recipe(text)
    except RecipeError as error:
        return error.problems
    return []
