"""Running `peftlab` in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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
