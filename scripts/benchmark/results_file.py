"""Where the benchmarks write what they measured, with hardware, versions and date."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import torch

from peftlab.runs.environment import describe_environment
from peftlab.world.open import open_world

RESULTS = Path(__file__).resolve().parent / "results"


def write_result(name: str, device: torch.device, found: dict[str, Any]) -> Path:
    """Write one measurement as JSON, named after what was measured and on what, and return its path."""
    environment = describe_environment(open_world(device.type)) | {"date": datetime.date.today().isoformat()}
    del environment["command"]
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"environment": environment} | found, indent=2) + "\n", encoding="utf-8")
    return path
