"""A recipe's data as an HTML page that needs no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jinja2
from markupsafe import Markup

from peftlab.quantities import format_share
from peftlab.reports import DataReport, Span


def render_page(report: DataReport, name: str, titles: Mapping[str, str], facts: Sequence[str]) -> str:
    """Return the page; texts of rows are escaped, and characters that cannot be seen are written as escapes.

    `titles` are those of a part's figures by their key, `facts` lines of a term, two or more spaces and a text.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("peftlab.runs"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    parts = {key: part for key, part in report.data.items() if isinstance(part, dict) and part.get("rows")}
    return environment.get_template("data.html").render(
        name=name,
        report=report,
        facts=[line.split("  ", 1) for line in facts],
        parts=parts,
        titles={key: title for key, title in titles.items() if any(part.get(key) for part in parts.values())},
        shares={key: format_share(part["supervised"] / part["tokens"]) for key, part in parts.items()},
        most=max((one.rows for one in report.lengths), default=1),
        pieces=pieces,
    )


def pieces(span: Span) -> Markup:
    """Return a span's text as HTML: line breaks are kept and marked, other control characters are escaped."""
    return Markup("").join(
        Markup('<span class="break">↵</span>\n') if character == "\n" else _visible(character)
        for character in span.text
    )


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")
