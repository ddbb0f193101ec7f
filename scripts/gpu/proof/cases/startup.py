"""Seconds from a command to its answer, each in a fresh process as a person starts it."""

from __future__ import annotations

import subprocess
import sys
import time

from proof.bench import ROOT, Bench, tiny_file


def run(bench: Bench) -> None:
    recipe = str(tiny_file("lora"))
    train = ["train", recipe, *bench.overrides({"training.steps": 1, "run.output": "run"})]
    commands = {
        "--help": ["--help"],
        "check": ["check", recipe],
        "plan": ["plan", recipe, "--device", bench.device],
        "train, one step": train,
    }
    for name, arguments in commands.items():
        if bench.pretend and name == "plan":
            continue
        with bench.case(name) as case:
            started = time.perf_counter()
            command = [sys.executable, "-m", "peftlab", *arguments]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            case["command_seconds"] = time.perf_counter() - started
            case |= {"ok": done.returncode == 0, "says": f"exit {done.returncode}"}
            if done.returncode:
                case["output"] = (done.stdout + done.stderr)[-1500:]
