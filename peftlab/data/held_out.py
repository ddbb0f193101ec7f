"""Held-out rows in a run's directory: those that were taken from the training rows, so that no other file is needed."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from peftlab.errors import StorageError
from peftlab.files import decode_json
from peftlab.tasks.formats import Example, Format


def write_held_out(folder: Path, part: str, examples: Sequence[Example]) -> None:
    """Write the examples of one part as one gzipped file of JSON lines; equal examples give equal bytes."""
    with open(_place(folder, part), "wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
        for example in examples:
            file.write(json.dumps(asdict(example)).encode() + b"\n")


def read_held_out(folder: Path, part: str, layout: Format) -> list[Example] | None:
    """Return the examples of one part; None where the run wrote none. Raises StorageError for a damaged file."""
    path = _place(folder, part)
    if not path.exists():
        return None
    try:
        with gzip.open(path, "rb") as file:
            return [layout.example(**decode_json(line)) for line in file]
    except (OSError, EOFError, zlib.error, ValueError, TypeError) as error:
        raise StorageError(f"{path}: cannot be read ({type(error).__name__}); name rows by data.{part}=FILE") from None


def _place(folder: Path, part: str) -> Path:
    return folder / f"{part}.jsonl.gz"
