"""The documentation's tables of CUDA: the blocks between `<!-- table NAME -->` and `<!-- end -->`."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from proof.bench import ROOT
from proof.record import FORMAT
from proof.tables import TABLES

RESULTS = ROOT / "scripts" / "benchmark" / "results" / "cuda"
DOCS = ROOT / "peftlab" / "docs"
BLOCK = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
DESCRIPTION = """Writes the tables of the documentation from proofs (scripts/gpu/prove) and plans
(scripts/reproduce_memory_savings). Without files it reads scripts/benchmark/results/cuda/; files that are named come
after those."""
UNREADABLE = 8  # an exit code, as peftlab's own


class TableError(Exception):
    """A file that no table can be made from; its message is one line."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/gpu/tables", description=DESCRIPTION)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="JSON of a proof or a plan")
    parser.add_argument("--show", nargs="+", choices=TABLES, metavar="TABLE", help="print these tables, write nothing")
    options = parser.parse_args(arguments)
    try:
        contents = read_all([*committed(), *options.files])
        if options.show:
            print("\n\n".join(TABLES[name](contents) for name in options.show))
            return 0
        for path in sorted(DOCS.glob("*.md")):
            before = path.read_text(encoding="utf-8")
            after = refresh(before, contents)
            if after != before:
                path.write_text(after, encoding="utf-8")
                print(f"written: {path.relative_to(ROOT)}")
    except TableError as error:
        print(f"scripts/gpu/tables: {error}", file=sys.stderr)
        return UNREADABLE
    return 0


def committed() -> list[Path]:
    """Return the repository's own results, oldest first."""
    return sorted(
        RESULTS.glob("*.json"), key=lambda path: (json.loads(path.read_text(encoding="utf-8"))["date"], path.name)
    )


def read_all(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the contents. Raises TableError for what is not a proof or a plan, or was only tried on the CPU."""
    found = []
    for path in paths:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise TableError(f"{path}: cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise TableError(f"{path}: cannot be read as JSON: {error}") from None
        if not isinstance(content, dict) or not ({"machine", "date"} <= content.keys()):
            raise TableError(f"{path}: is neither a proof of scripts/gpu/prove nor a plan of memory savings")
        if content.get("format", FORMAT) > FORMAT:
            raise TableError(f"{path}: was written by a newer version (format {content['format']})")
        if content.get("pretended"):
            raise TableError(f"{path}: was only tried on the CPU (--pretend), so it has no measurements")
        found.append(content)
    return found


def refresh(page: str, contents: Sequence[dict[str, Any]]) -> str:
    """Return a page with its tables as the contents make them. Raises TableError for an unknown table."""

    def write(block: re.Match) -> str:
        if block[2] not in TABLES:
            raise TableError(f"there is no table {block[2]!r}; there are: {', '.join(TABLES)}")
        return f"{block[1]}\n{TABLES[block[2]](contents)}\n\n{block[3]}"

    return BLOCK.sub(write, page)
