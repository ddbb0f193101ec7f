"""`peftlab push`: upload a run's result with its card."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from peftlab.cli.answer import answers
from peftlab.cli.options import AsJson, Debug, NoVerify


@answers
def push(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="A run, or a folder of `merge` or `export`.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Repository on the hub, OWNER/NAME.")],
    public: Annotated[bool, typer.Option("--public", help="Make a new repository that everyone can read.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be uploaded.")] = False,
    no_verify: NoVerify = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Any:
    """Upload trained weights with a model card. A new repository is private; rows and checkpoints are not sent."""
    from peftlab.runs.push import push as push_run

    found = push_run(source, repo, public=public, dry_run=dry_run, verify=not no_verify)
    return {**asdict(found), "bytes": found.bytes}, lambda: show_upload(found), 0


def show_upload(found: Any) -> None:
    from peftlab.cli.render import plain_table, show
    from peftlab.quantities import format_bytes

    table = plain_table("file", "size")
    for name, size in found.files.items():
        table.add_row(name, format_bytes(size))
    table.add_row("total", format_bytes(found.bytes))
    show(table)
    access = "private" if found.private else "public"
    print(f"\nin {found.url}" if found.url else f"\nwould be uploaded to {found.repo} (a new repository is {access})")
