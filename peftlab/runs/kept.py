"""Files that runs keep for later runs, each named by all that its content depends on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from peftlab.files import write_atomically
from peftlab.reports import MemoryReport


def name_of(depends: dict[str, Any]) -> str:
    """Return the name of a file whose content depends on these values alone."""
    return hashlib.sha256(json.dumps(depends, sort_keys=True, default=str).encode()).hexdigest()


def keep(path: Path, text: str) -> None:
    """Keep a text for later runs; where that cannot be done they make it again."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)


def note_use(path: Path) -> None:
    """Note that a file was used now, so that it is not deleted as unused."""
    with contextlib.suppress(OSError):
        os.utime(path)


def find_report(path: Path) -> MemoryReport | None:
    """Return the memory that an earlier run kept; None where there is none, or it cannot be read."""
    try:
        found = MemoryReport.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    note_use(path)
    return found


def keep_report(path: Path, report: MemoryReport) -> None:
    """Keep memory for later runs."""
    keep(path, report.model_dump_json(include=set(MemoryReport.model_fields)))  # computed fields are no input
