"""Python interpreters of environments with libraries that do not suit this one: `scripts/fetch_peers` makes them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / ".peers"


def needs(peer: str) -> pytest.MarkDecorator:
    """Return the mark that skips a test where there is no environment with `peer`."""
    there = (FOLDER / peer / ".complete").exists()
    return pytest.mark.skipif(not there, reason=f"no environment with {peer}: run scripts/fetch_peers")


def python_of(peer: str) -> str:
    return str(FOLDER / peer / "bin" / "python")


def run_peer(peer: str, code: str, *arguments: str, folder: Path, seconds: float = 240) -> str:
    """Run code in the environment of a peer, without a hub, and return what it prints."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    command = [python_of(peer), "-c", code, *arguments]
    found = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds, env=environment, cwd=folder, check=False
    )
    assert found.returncode == 0, found.stderr[-2000:]
    return found.stdout
