"""The arguments and options that commands share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file.", show_default=False)]
RecipePaths = Annotated[
    list[str], typer.Argument(metavar="RECIPE", help="Recipe files, and KEY=VALUE overrides for all of them.")
]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides, such as method.rank=16.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a run.", show_default=False)]
NoVerify = Annotated[
    bool, typer.Option("--no-verify", help="Do not compare the run's files with the digests that it wrote.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is already there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output instead of text.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def split_overrides(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Return the recipe files and the `key=value` overrides among the arguments of one command."""
    overrides = [text for text in arguments if "=" in text and not os.path.exists(text)]
    return [Path(text) for text in arguments if text not in overrides], overrides
