"""`peftlab docs`: the pages that ship with the package, and what each field of a recipe means."""

from __future__ import annotations

import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peftlab.cli.answer import answers
from peftlab.cli.options import AsJson, Debug
from peftlab.errors import UsageError

if TYPE_CHECKING:
    from peftlab.recipe.reference import Field

PAGES = Path(__file__).parents[1] / "docs"
WIDTH = 80
# A line of the list in index.md, which is the order of the pages and what each is about.
ENTRY = re.compile(r"^- \[(?P<topic>[\w-]+)\]\((?P=topic)\.md\): (?P<summary>.+)$", re.MULTILINE)
LINK = re.compile(r"\[(?P<words>[^\]]+)\]\((?P<topic>[\w-]+)\.md(?:#[\w-]+)?\)")

Topic = Annotated[
    str | None,
    typer.Argument(
        metavar="TOPIC", help="A page, or a field to explain: method.rank, lora.rank, rank.", show_default=False
    ),
]


@answers
def docs(topic: Topic = None, as_json: AsJson = False, debug: Debug = False) -> Any:
    """Show a page of the documentation, or explain a field of a recipe."""
    topics = list_topics()
    if topic is None:
        answer = {"topics": [{"topic": name, "summary": summary} for name, summary in topics.items()]}
        return answer, lambda: show_topics(topics), 0
    if topic in topics:
        text = read_page(topic)
        return {"topic": topic, "markdown": text}, lambda: show_page(text), 0
    fields = look_up(topic, topics)
    return {"fields": [asdict(field) for field in fields]}, lambda: show_fields(fields), 0


def list_topics() -> dict[str, str]:
    """Return the pages in the order of the index, each with what it is about."""
    return {"index": "What peftlab is, and this list"} | dict(ENTRY.findall(read_page("index")))


def read_page(topic: str) -> str:
    return (PAGES / f"{topic}.md").read_text(encoding="utf-8")


def look_up(key: str, topics: dict[str, str]) -> list[Field]:
    """Return the fields that a key names. Raises UsageError with the nearest names if there is none."""
    from peftlab.recipe.field_search import explain_unknown, find_fields

    fields = find_fields(key)
    if not fields:
        raise UsageError(explain_unknown(key, topics))
    return fields


def show_topics(topics: dict[str, str]) -> None:
    width = max(map(len, topics))
    print("peftlab docs TOPIC shows a page:\n")
    for topic, summary in topics.items():
        print(f"  {topic:<{width}}  {summary}")
    print(
        "\npeftlab docs KEY explains a field of a recipe: method.rank, lora.rank, rank;\nor lists a section: training."
    )


def show_page(text: str) -> None:
    """Print a page: laid out in at most 80 columns on a terminal, as plain Markdown anywhere else."""
    if not sys.stdout.isatty():
        print(text, end="")
        return
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    page = Markdown(LINK.sub(as_command, text), code_theme="ansi_dark")
    console.print(page, width=min(WIDTH, console.width))


def as_command(link: re.Match[str]) -> str:
    """Return a link to another page as the command that shows it."""
    words = "" if link["words"] == link["topic"] else f"{link['words']}: "
    return f"{words}`peftlab docs {link['topic']}`"


def show_fields(fields: list[Field]) -> None:
    """Print one field in full, or several of a section with a line or two each."""
    if len({field.path for field in fields}) == 1:
        print("\n\n".join(describe_field(field) for field in fields))
    else:
        print("\n".join(summarise(field) for field in fields))


def describe_field(field: Field) -> str:
    from peftlab.recipe.reference_page import show_default

    facts = {"value": field.value, "default": "none: it is required" if field.required else show_default(field)}
    if field.kinds:
        facts["only with"] = " or ".join(f"{field.section}.type={kind}" for kind in field.kinds)
    lines = [wrap(value, f"  {name:<10} ") for name, value in facts.items()]
    return "\n".join([field.path, "", wrap(field.text, "  "), "", *lines])


def summarise(field: Field) -> str:
    """Return a field's path, its default and the types that have it, and below them its string."""
    from peftlab.recipe.reference_page import describe_default

    facts = "; ".join([describe_default(field), ", ".join(field.kinds)]).removesuffix("; ")
    return f"{field.path}  ({facts})\n{wrap(field.text, '    ')}"


def wrap(text: str, indent: str) -> str:
    import textwrap

    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=" " * len(indent))
