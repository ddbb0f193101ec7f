"""The one JSON of a proof: what ran, on what, and what was found. It is complete after every finding."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

FORMAT = 1


class Record:
    """The proof's file. `parts` has for each part its status (`done`, `failed`, `time limit`, `not run`) and cases."""

    def __init__(self, path: Path, facts: dict[str, Any]):
        self.path = path
        self._lock = threading.Lock()
        self.content: dict[str, Any] = {"format": FORMAT, **facts, "parts": {}}

    def set(self, part: str, status: str, **values: Any) -> None:
        """Write what is known of a part."""
        with self._lock:
            self.content["parts"][part] = {"status": status, **values}
            self.write()

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        half = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        half.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        os.replace(half, self.path)


def read_findings(path: Path) -> list[dict[str, Any]]:
    """Return the findings that a part has written so far; a line cut by its end is left out."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def failed(record: dict[str, Any]) -> list[str]:
    """Return the parts that did not end, and the cases whose claim is not true, as `part` and `part/case`."""
    found = []
    for name, part in record["parts"].items():
        found += [name] if part["status"] in ("failed", "time limit") else []
        found += [f"{name}/{case['case']}" for case in part.get("cases", []) if case.get("ok") is False]
    return found
