"""What a run was made with: versions, commit, device, threads, processes."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from peftlab import __version__
from peftlab.secrets import mask_secrets

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "safetensors")


def describe_environment(device: torch.device, processes: int) -> dict[str, Any]:
    """Return everything about this machine and its software that a reader of the result needs."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {"peftlab": __version__} | {name: library_version(name) for name in LIBRARIES},
        "commit": source_commit(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "command": [mask_secrets(argument) for argument in sys.argv],
    }


def library_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def source_commit() -> str | None:
    """Return the commit of the checkout that peftlab runs from, marked if it has changes; None if installed."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout.strip()
    return f"{commit}{' with changes' if changed else ''}" if commit else None


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.processor() or platform.machine()}, {os.cpu_count()} cores)"
