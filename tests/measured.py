"""Measurements that take minutes each: one line of JSON for each, so that the next call makes only those that lack."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def measure_missing(path: Path, names: Iterable[str], measure: Callable[[str], Row]) -> list[Row]:
    """Append what `measure` returns for each name that the file does not have, as `name`, and return all its rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = read_rows(path)
    done = {row["name"] for row in rows}
    for name in names:
        if name in done:
            continue
        rows.append({"name": name} | measure(name))
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    return rows


def read_rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
