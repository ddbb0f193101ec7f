"""Writes the fields of the page `docs/recipe.md`: `python -m peftlab.recipe.reference_page`."""

from __future__ import annotations

import textwrap
from itertools import groupby
from pathlib import Path

from peftlab.recipe.reference import COMPARISON, Field, Section, list_fields, list_sections
from peftlab.recipe.vocabulary import show

WIDTH = 100
PAGE = Path(__file__).parents[1] / "docs" / "recipe.md"
# Above this line the page is written by hand; below it, by this module.
FIELDS = "\n## Fields\n"
NOTE = "`scripts/write_docs` writes what follows from the strings beneath the fields."


def refresh(page: str) -> str:
    """Return the page with its fields as they are now."""
    return (
        page.partition(FIELDS)[0] + FIELDS + f"\n{NOTE}\n\n" + "\n\n".join(map(render_section, page_sections())) + "\n"
    )


def page_sections() -> list[Section]:
    """Return the sections in the page's order, with the comparison file itself before its inner sections."""
    sections = list(list_sections())
    first = next(i for i, section in enumerate(sections) if section.path.startswith(COMPARISON))
    return [*sections[:first], Section(COMPARISON, "A comparison file."), *sections[first:]]


def render_section(section: Section) -> str:
    """Return one section: its string, the fields that it always has, then those of each of its types."""
    lines = [f"### {section.path}", "", section.text]
    fields = [field for field in list_fields() if field.section == section.path]
    for kinds, group in groupby(sorted(fields, key=lambda field: field.kinds != ()), lambda field: field.kinds):
        lines += ["", *([f"With `type: {'` or `type: '.join(kinds)}`:", ""] if kinds else [])]
        lines += map(render_field, group)
    return "\n".join(lines)


def render_field(field: Field) -> str:
    line = f"- `{field.name}` ({field.value}; {describe_default(field)}). {field.text}"
    return textwrap.fill(line, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def describe_default(field: Field) -> str:
    return "required" if field.required else f"default {show_default(field)}"


def show_default(field: Field) -> str:
    """Return a default as a recipe writes it."""
    default = tuple(map(Bare, field.default)) if isinstance(field.default, tuple) else field.default
    return default if isinstance(default, str) else show(default)


class Bare(str):
    """Text that is shown without quotes."""

    def __repr__(self) -> str:
        return str(self)


def main() -> None:
    PAGE.write_text(refresh(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
