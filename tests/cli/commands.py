"""Running `peftlab` in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from peftlab.cli.app import run
from tests.apart import call_apart

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = REPOSITORY / "recipes" / "tiny" / "lora.yaml"


def peftlab(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one command line and return what it printed and its exit code."""
    return subprocess.run(
        [sys.executable, "-m", "peftlab", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY), **environment},
        timeout=300,
    )


def answer_apart(*arguments: object, log: Path) -> Any:
    """Return the JSON object of one command line in a fresh process that starts warm; it must end well."""
    assert call_apart(_answer, [*map(str, arguments), "--json"], log=log) == 0, log.read_text()
    return json.loads("{" + log.read_text().partition("{")[2])


def _answer(arguments: list[str]) -> None:
    sys.exit(run(arguments))
