"""Two processes of one run: their result against one process's, and the end of both when one ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

from proof.bench import FLOAT32, Bench, Settings, tiny_file

# CUDA's collectives wait ten minutes for a lost process unless something ends them.
SECONDS_TO_END = 20.0
LOST = 12
TOLERANCE = 1e-4
LONG = {"training.steps": 100_000}


def run(bench: Bench) -> None:
    import torch

    if not bench.pretend and torch.cuda.device_count() < 2:
        with bench.case("devices") as case:
            case["says"] = "not possible: NCCL needs a CUDA device for each process, and this machine has one"
        return
    with bench.case("two equal one") as case:
        case |= compare_with_one(bench)
    with bench.case("one is killed") as case:
        case |= kill_one(bench)
    with bench.case("one fails") as case:
        case |= let_one_fail(bench)


def start(bench: Bench, name: str, settings: Settings, processes: int = 2, of_second: Settings | None = None) -> list:
    """Start the processes of one run as a launcher does, and return them."""
    from peftlab.runs.jobs import Job
    from peftlab.runs.jobs import start as start_job

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    own = {"training.batch_size": 2, **FLOAT32, **settings}
    found = []
    for rank in range(processes):
        environment = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        overrides = tuple(bench.overrides({**own, **(of_second or {} if rank else {})}))
        log = bench.folder / f"{name}-{rank}.log"
        job = Job(tiny_file("lora"), overrides, bench.folder / name, log, environment, resume=False)
        found.append(start_job(job, warm=True))
    return found


def wait(jobs: list, seconds: float = 60.0) -> list[int | None]:
    """Return the exit codes; a process that still runs after so long is killed and has none."""
    until = time.monotonic() + seconds
    for job in jobs:
        job.wait(max(until - time.monotonic(), 0.1))
    codes = [job.exit_code for job in jobs]
    for job in jobs:
        if job.exit_code is None:
            job.process.kill()
    return codes


def compare_with_one(bench: Bench) -> dict[str, Any]:
    """Return both runs' losses on the evaluation rows: two processes take the rows that one takes in two batches."""
    two, one = start(bench, "two", {}), start(bench, "one", {"training.gradient_accumulation": 2}, processes=1)
    codes = [*wait(two), *wait(one)]
    if set(codes) != {0}:
        return {"ok": False, "codes": codes, "says": f"exit codes {codes}", "output": logs(bench, "two")}
    losses = [read(bench.folder / name)["metrics"]["after"]["loss"] for name in ("two", "one")]
    difference = abs(losses[0] / losses[1] - 1)
    return {"ok": difference <= TOLERANCE, "losses": losses, "says": f"losses after 6 steps differ by {difference:.1e}"}


def kill_one(bench: Bench) -> dict[str, Any]:
    """Return how long the first process lives after the second was killed, and how it ends."""
    jobs = start(bench, "killed", LONG)
    metrics = bench.folder / "killed" / "metrics.jsonl"
    until = time.monotonic() + 60
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
        if time.monotonic() > until or any(job.exit_code is not None for job in jobs):
            return {"ok": False, "says": "it trained no four steps", "output": logs(bench, "killed")}
        time.sleep(0.05)
    os.kill(jobs[1].process.pid, signal.SIGKILL)
    return judge_end(bench, "killed", jobs, 0, [LOST])


def let_one_fail(bench: Bench) -> dict[str, Any]:
    """Return how long the first process lives after the second ended with an error, and how it ends."""
    jobs = start(bench, "failing", LONG, of_second={"data.train": f"{bench.folder}/missing.jsonl"})
    jobs[1].wait(60)
    return judge_end(bench, "failing", jobs, 0, [LOST])


def judge_end(bench: Bench, name: str, jobs: list, first: int, wanted: list[int]) -> dict[str, Any]:
    ended = time.monotonic()
    code = wait([jobs[first]], SECONDS_TO_END)[0]
    seconds = time.monotonic() - ended
    says = f"the other ended with {code} after {seconds:.1f} s"
    return {"ok": code in wanted, "code": code, "after_seconds": seconds, "says": says, "output": logs(bench, name)}


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def logs(bench: Bench, name: str) -> str:
    return "\n".join(path.read_text(encoding="utf-8")[-600:] for path in sorted(bench.folder.glob(f"{name}-*.log")))
