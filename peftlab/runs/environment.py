"""The environment of a run: versions, commit, device, threads, processes."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from peftlab.runs.versions import describe_versions
from peftlab.secrets import mask_secrets
from peftlab.world.base import World
from peftlab.world.hardware import device_name


def describe_environment(world: World) -> dict[str, Any]:
    """Return everything about this machine and its software that a reader of the result needs."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": describe_versions(),
        "commit": source_commit(),
        "device": device_name(world.device),
        "repeatable": world.repeatable,
        "threads": torch.get_num_threads(),
        "strategy": world.strategy,
        "processes": world.processes,
        "command": [mask_secrets(argument) for argument in sys.argv],
    }


def source_commit() -> str | None:
    """Return the commit of the checkout that peftlab runs from, marked if it has changes; None if installed."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout.strip()
    return f"{commit}{' with changes' if changed else ''}" if commit else None
