"""`peftlab cache`: tokens and measurements that are kept between runs, their size, and how to delete them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from peftlab.cli.answer import answers
from peftlab.cli.options import AsJson, Debug
from peftlab.errors import UsageError


@answers
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Delete all of them.")] = False,
    unused: Annotated[
        float | None,
        typer.Option(
            "--unused",
            metavar="DAYS",
            min=0,
            help="With --clear: only those that nothing used for so long.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Any:
    """List what is kept between runs (tokens, measurements, evaluations of bases), or delete it. Runs make it again."""
    from peftlab.runs.cache import clear_cache, list_cache

    if unused is not None and not clear:
        raise UsageError("--unused selects what is deleted; add --clear")
    found = clear_cache(unused or 0.0) if clear else list_cache()
    return found, lambda: show_cache(found), 0


def show_cache(found: dict[str, Any]) -> None:
    from peftlab.cli.render import plain_table, show
    from peftlab.quantities import format_bytes, number

    entries = f"{len(found['entries'])} {'entry' if len(found['entries']) == 1 else 'entries'}"
    total = f"{found['folder']}: {format_bytes(found['bytes'])} in {entries}"
    deleted = "; deleted" if found["deleted"] else ""
    print(f"{total}{deleted}")  # unwrapped, to be copied
    if (left := found["unfinished"])["count"]:
        print(
            f"of writers that were killed: {format_bytes(left['bytes'])} in {number(left['count'], 'folder')}{deleted}"
        )
    titles = {"measurements": "memory measurement", "base_figures": "base evaluation", "plans": "plan"}
    for kind, title in titles.items():
        if (kept := found[kind])["count"]:
            print(f"{kept['folder']}: {format_bytes(kept['bytes'])} in {number(kept['count'], title)}{deleted}")
    if found["deleted"] or not found["entries"]:
        return
    table = plain_table("tokens of", "rows", "size", "days unused")
    for one in found["entries"]:
        rows = "damaged" if one["rows"] is None else f"{one['rows']:,}"
        table.add_row(", ".join(one["sources"]), rows, format_bytes(one["bytes"]), f"{one['days_unused']:.1f}")
    show(table)
