"""Versions, devices, and one backward pass of a toy model with every variant of every method."""

from __future__ import annotations

import shutil
import subprocess

from proof.bench import Bench


def run(bench: Bench) -> None:
    from peftlab.runs.doctor import report

    with bench.case("methods") as case:
        found = report()
        unusable = [name for name, method in found["methods"].items() if not method["usable"]]
        case |= {"ok": not unusable, "report": found}
        case["says"] = f"{len(found['methods']) - len(unusable)} of {len(found['methods'])} methods train here"
    with bench.case("untried versions") as case:
        case |= {"lines": found["untried_versions"], "says": "; ".join(found["untried_versions"]) or "none"}
    if shutil.which("nvidia-smi"):
        with bench.case("nvidia-smi") as case:
            case["text"] = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=20).stdout
