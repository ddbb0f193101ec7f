"""A comparison of real runs, killed at random moments until it is done, ends as one that never was."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from peftlab.comparison.folder import read_comparison
from peftlab.recipe.dump import dump_recipe
from tests.runs.recipes import short_recipe


def start(files: list[Path], folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "peftlab", "compare", *map(str, files)]
    options = ["--output", str(folder), "--seeds", "2", "--rates", "1e-3,1e-2", "--jobs", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, *options], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def finished_runs(folder: Path) -> dict[str, int]:
    """Return when each finished run was written last."""
    results = folder.glob("runs/*/result.json")
    return {
        path.parent.name: path.stat().st_mtime_ns
        for path in results
        if json.loads(path.read_text())["status"] == "finished"
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_comparison_killed_at_random_moments_gives_the_same_table_and_repeats_no_finished_run(tmp_path):
    files = []
    for method in ("lora", "bitfit"):
        files.append(tmp_path / f"{method}.yaml")
        files[-1].write_text(dump_recipe(short_recipe(method, tmp_path / "unused")))
    started = time.monotonic()
    assert start(files, tmp_path / "straight").wait() == 0
    # Two of its three rounds of runs never fit into one life, however busy the machine is; one sometimes does.
    longest_life_seconds = 0.55 * (time.monotonic() - started)
    folder, lives, seen, kills = tmp_path / "killed", random.Random(0), {}, 0
    while True:
        process = start(files, folder)
        try:
            code = process.wait(lives.uniform(1, longest_life_seconds))
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        now = finished_runs(folder)
        assert {name: now.get(name) for name in seen} == seen, "a finished run was repeated"
        seen = now
    print(f"{kills} kills")
    assert code == 0 and kills >= 2
    assert read_comparison(folder) == read_comparison(tmp_path / "straight").model_copy(update={"name": "killed"})
