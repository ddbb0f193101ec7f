"""Two processes of one run on the CPU, as a launcher would start them, but warm and without one."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from peftlab.recipe.dump import dump_recipe
from peftlab.runs.jobs import Job, start


class Pair:
    """The two processes of a run of `recipe`, and the output of each; `environment` is what a launcher adds."""

    def __init__(
        self,
        recipe,
        folder: Path,
        *,
        resume: bool = False,
        overrides_of_second: tuple[str, ...] = (),
        environment: Mapping[str, str] = {},
    ):
        path = folder / "recipe.yaml"
        path.write_text(dump_recipe(recipe))
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())} | dict(environment)
        self.logs = [folder / f"process-{number}.log" for number in range(2)]
        for log in self.logs:
            log.unlink(missing_ok=True)
        self.processes = [
            start(
                Job(
                    path,
                    overrides_of_second if number else (),
                    Path(recipe.run.output),
                    log,
                    shared | {"RANK": str(number), "LOCAL_RANK": str(number)},
                    resume,
                ),
                warm=True,
            ).process
            for number, log in enumerate(self.logs)
        ]
        self.directory = Path(recipe.run.output)

    def wait(self, seconds: float = 240) -> list[int]:
        """Return both exit codes."""
        ends = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(ends - time.monotonic(), 0))
            if process.exitcode is None:
                process.kill()
                raise AssertionError(f"a process still ran after {seconds} s: {self.outputs()}")
        return [process.exitcode for process in self.processes]

    def outputs(self) -> list[str]:
        return [log.read_text() for log in self.logs]

    def result(self) -> dict:
        return json.loads((self.directory / "result.json").read_text())

    def wait_for_step(self, step: int) -> None:
        """Return once the run has logged a step."""
        wait_for_step(self.directory, step, lambda: all(process.is_alive() for process in self.processes))


def free_port() -> int:
    """Return the number of a port that nobody uses now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for_step(directory: Path, step: int, alive: Callable[[], bool], seconds: float = 180) -> None:
    """Return once the metrics of a run that is `alive` have a line of the step or of a later one."""
    ends, metrics = time.monotonic() + seconds, directory / "metrics.jsonl"
    while time.monotonic() < ends and alive():
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        if any(json.loads(line)["step"] >= step for line in lines if line.endswith("}")):
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} was not reached")
