"""The columns of data files that are at hand, from their first rows and without torch, and which a recipe lacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Formatter
from typing import Any

from peftlab.errors import DataError, listed, nearest
from peftlab.files import user_path
from peftlab.recipe.schema import Data, Recipe
from peftlab.recipe.yaml_source import KeyPath
from peftlab.tables.files import FilePiece, file_kind
from peftlab.tasks import possible_formats
from peftlab.tasks.formats import Format

PARTS = ("train", "evaluation", "test")
# A `.json` file has no first rows: it is read whole, or not at all.
LARGEST_JSON = 16 * 2**20
BUILTIN = Path(__file__).parent.parent / "builtin"


def find_header_errors(recipe: Recipe) -> list[tuple[KeyPath, str]]:
    """Return (key path, message) for every column that the recipe needs and a file at hand does not have.

    Files that are not there or cannot be read are left to the commands that read them whole.
    """
    sources = {part: getattr(recipe.data, part) for part in PARTS}
    files = {part: path for part, source in sources.items() if (path := find_file(source))}
    found: dict[tuple[KeyPath, str], None] = {}
    for path in dict.fromkeys(files.values()):
        columns = read_columns(path)
        if columns:
            found |= dict.fromkeys(missing(recipe, path, columns))
    return list(found)


def find_file(source: Any) -> Path | None:
    """Return the local file that a source of rows names, None for other sources and for files that are not there."""
    if not isinstance(source, str):
        return None
    name = source.partition("[")[0].strip()
    if name.startswith("builtin:"):
        return next(iter(sorted((BUILTIN / name.removeprefix("builtin:")).glob("*.jsonl*"))), None)
    try:
        path = user_path(name)
    except ValueError:
        return None
    return path if path.is_file() else None


def read_columns(path: Path) -> list[str]:
    """Return the names of a file's columns as far as its first rows show them, empty if they cannot be read."""
    try:
        return FilePiece(path).columns() if has_first_rows(path) else []
    except (DataError, OSError, ImportError):  # the commands that read it whole say what is wrong
        return []


def has_first_rows(path: Path) -> bool:
    """Return whether a file can be looked into without much to read. Raises OSError."""
    kind = file_kind(path.name)
    return kind is not None and (kind != ".json" or path.stat().st_size <= LARGEST_JSON)


def missing(recipe: Recipe, path: Path, columns: list[str]) -> Iterator[tuple[KeyPath, str]]:
    """Yield (key path, message) for every role's column, and every name in the template, that is not a column."""
    data, formats = recipe.data, possible_formats(recipe.task, recipe.data.format)
    formats = tuple(one for one in formats if set(data.columns) <= set(one.roles)) or formats
    layout = next((one for one in formats if fits(one, data, columns)), formats[0])
    made = layout.template_role if data.template is not None else None
    for role in () if is_written_in_a_layout(formats, data, columns) else layout.roles:
        column = data.columns.get(role, role)
        optional = role in layout.optional and role not in data.columns
        if role == made or optional or is_column(column, columns):
            continue
        fault = f"{path} has no column {column!r}{nearest(column, columns)}; it has {listed(columns)}"
        yield (
            (("data", "columns", role), fault)
            if role in data.columns
            else (
                ("data", "columns"),
                f"{fault}; name the column of the {role}, as in columns: {{{role}: NAME}}",
            )
        )
    for name in names_in(data.template):
        if not is_column(name, columns):
            fault = f"{path} has no column {name!r}{nearest(name, columns)}; it has {listed(columns)}"
            yield ("data", "template"), fault


def is_column(name: str, columns: list[str]) -> bool:
    """Return whether a name is a column, or dotted and perhaps inside of one."""
    return name in columns or name.partition(".")[0] in columns


def fits(layout: Format, data: Data, columns: list[str]) -> bool:
    """Return whether a file has all columns that rows of a format need."""
    made = layout.template_role if data.template is not None else None
    needed = [role for role in layout.roles if role not in layout.optional and role != made]
    return all(is_column(data.columns.get(role, role), columns) for role in needed)


def is_written_in_a_layout(formats: Sequence[Format], data: Data, columns: list[str]) -> bool:
    """Return whether a file has the columns of another layout of a format, as ShareGPT's or Alpaca's."""
    named = data.template is not None or bool(data.columns)
    return not named and any(set(one.columns) <= set(columns) for layout in formats for one in layout.layouts)


def names_in(template: str | None) -> list[str]:
    """Return the columns that a template names; none of one that is not a template."""
    try:
        parts = [name for _, name, _, _ in Formatter().parse(template or "") if name]
    except ValueError:
        return []
    return list(dict.fromkeys(parts))
