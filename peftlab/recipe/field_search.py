"""Finding fields of recipes by what a person types: a key path, a section, `lora.rank`, or a field's name alone."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from peftlab.errors import UsageError
from peftlab.recipe.reference import Field, list_fields, list_sections
from peftlab.recipe.synonyms import path_of

SUGGESTIONS = 3


def find_fields(key: str) -> list[Field]:
    """Return the fields that `key` names: one (several where methods differ in it), or those of a section.

    Empty if there is none. Raises UsageError for a name that fields of several sections have.
    """
    key = key.removeprefix("recipe.")
    for find in (fields_at, fields_under, fields_of_kind, fields_named, fields_called):
        if found := find(key):
            return found
    return []


def fields_at(key: str) -> list[Field]:
    return [field for field in list_fields() if field.path == key]


def fields_under(key: str) -> list[Field]:
    return [field for field in list_fields() if field.path.startswith(f"{key}.")]


def fields_of_kind(key: str) -> list[Field]:
    """Return the fields of one type of a section, `lora`, or the one that is asked for, `lora.rank`."""
    kind, _, name = key.partition(".")
    section = next((section.path for section in list_sections() if kind in section.kinds), None)
    return [
        field
        for field in list_fields()
        if field.section == section and (not field.kinds or kind in field.kinds) and name in ("", field.name)
    ]


def fields_named(key: str) -> list[Field]:
    """Return the fields whose path ends with `key`. Raises UsageError if they are in several places."""
    found = [field for field in list_fields() if field.path.endswith(f".{key}")]
    paths = list(dict.fromkeys(field.path for field in found))
    if len(paths) > 1:
        raise UsageError(f"{key!r} is a field of several sections; name one of {', '.join(paths)}")
    return found


def fields_called(key: str) -> list[Field]:
    """Return the fields that other libraries call so: `lora_alpha`, `training.lr`."""
    path = path_of(key.rpartition(".")[2])
    return fields_at(path) if path else []


def explain_unknown(key: str, topics: Iterable[str]) -> str:
    """Return the one line for a name that is neither a page nor a field: who has it, or the nearest names."""
    kind, _, name = key.rpartition(".")
    known = known_names(topics)
    owners = [field for field in list_fields() if name and kind in known and field.name == name]
    if owners:
        paths = dict.fromkeys(describe_owner(field) for field in owners)
        return f"{kind} has no field {name!r}; it is a field of {' and of '.join(paths)}"
    close = get_close_matches(key, known, n=SUGGESTIONS, cutoff=0.6)
    hint = f"did you mean {' or '.join(repr(word) for word in close)}?" if close else "`peftlab docs` lists the topics"
    return f"{key!r} is not a topic and not a field of a recipe; {hint}"


def describe_owner(field: Field) -> str:
    return f"{field.section}.type {' and '.join(field.kinds)}" if field.kinds else field.section


def known_names(topics: Iterable[str]) -> list[str]:
    """Return everything that `peftlab docs` can show: pages, sections, types, key paths and names of fields."""
    names = [*topics]
    for section in list_sections():
        names += [section.path, *section.kinds]
    for field in list_fields():
        names += [field.path, field.name, *(f"{kind}.{field.name}" for kind in field.kinds)]
    return list(dict.fromkeys(names))
