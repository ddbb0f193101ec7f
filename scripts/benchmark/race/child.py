"""One run of one peer, in this process: python -m race.child PEER JOB BORN OUTPUT."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from race.clock import Clock
from race.in_turn import wait_of_child
from race.job import Job


def ours(job: Job, clock: Clock) -> dict[str, Any]:
    from race.ours import run

    return run(job, clock)


def loop(job: Job, clock: Clock) -> dict[str, Any]:
    from race.loop import run

    return run(job, clock)


def trainer(job: Job, clock: Clock) -> dict[str, Any]:
    from race.trainers import run_trainer

    return run_trainer(job, clock)


def liger(job: Job, clock: Clock) -> dict[str, Any]:
    from race.trainers import run_liger

    return run_liger(job, clock)


def trl(job: Job, clock: Clock) -> dict[str, Any]:
    from race.trainers import run_trl

    return run_trl(job, clock)


def adapterhub(job: Job, clock: Clock) -> dict[str, Any]:
    from race.adapterhub import run

    return run(job, clock)


PEERS: dict[str, Callable[[Job, Clock], dict[str, Any]]] = {
    "peftlab": ours,
    "loop": loop,
    "trainer": trainer,
    "liger": liger,
    "trl": trl,
    "adapterhub": adapterhub,
}


def main() -> None:
    peer, path, born, output = sys.argv[1:]
    job = Job.read(Path(path))
    import torch

    if job.threads:
        torch.set_num_threads(job.threads)
    clock = Clock(float(born), job.timed, job.device, wait_of_child())
    if peer == "start":
        from race.ours import write_start

        write_start(job)
        return
    more = PEERS[peer](job, clock)
    Path(output).write_text(json.dumps(clock.report() | more | {"torch": torch.__version__}), "utf-8")


if __name__ == "__main__":
    main()
