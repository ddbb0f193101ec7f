"""Prints this machine and its versions as JSON: `python -m proof.hardware`."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from typing import Any

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "safetensors", "triton")


def describe() -> dict[str, Any]:
    """Return the devices, the driver, and the versions of Python and of the libraries."""
    import torch

    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "machine": {
            "devices": [
                {"name": one.name, "bytes": one.total_memory, "capability": [one.major, one.minor]} for one in devices
            ],
            "cpu": platform.processor() or platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "driver": driver(),
        },
        "versions": {"python": platform.python_version(), "cuda": torch.version.cuda} | versions(),
    }


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def driver() -> str | None:
    """Return the driver's version; None without nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip().partition("\n")[0] or None


if __name__ == "__main__":
    print(json.dumps(describe()))
