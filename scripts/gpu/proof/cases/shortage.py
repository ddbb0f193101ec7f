"""Memory runs out in the middle of training: the error, its exit code, and the record that remains."""

from __future__ import annotations

from typing import Any

import torch

from proof.bench import Bench

STEP = 3
SPARE = 8 * 2**20


class Greedy:
    """A display that takes the device's memory at a step, as another process would; on the CPU it only fails so."""

    def __init__(self, device: str):
        self.device, self.taken = device, None

    def note(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass

    def update(self, line: dict[str, Any], steps: int) -> None:
        if line["event"] != "train" or line["step"] != STEP:
            return
        if self.device == "cpu":
            raise torch.OutOfMemoryError("out of memory, as a device would say it")
        torch.cuda.empty_cache()
        self.taken = torch.empty(torch.cuda.mem_get_info()[0] - SPARE, dtype=torch.uint8, device=self.device)


def run(bench: Bench) -> None:
    with bench.case("in the loop") as case:
        case |= run_out(bench)
    if bench.device == "cuda":
        with bench.case("another run after it") as case:
            case |= run_again(bench)


def run_out(bench: Bench) -> dict[str, Any]:
    """Return the error's lines and what the record says; right is an OutOfMemoryError in training and a full record."""
    from peftlab.errors import OutOfMemoryError
    from peftlab.runs.directory import RunDirectory
    from peftlab.runs.run import train

    # What would have fitted takes several plans: enough on the device.
    settings = {"run.plan": "off" if bench.pretend else "report", "run.output": "short"}
    try:
        train(bench.tiny("full", settings), display=Greedy(bench.device))
    except OutOfMemoryError as error:
        lines, code = str(error).splitlines(), error.exit_code
    else:
        return {"ok": False, "says": "the run ended as if nothing had happened"}
    result = RunDirectory.open(bench.folder / "short").read_result()
    report = result.memory.get("out_of_memory")
    right = result.status == "out_of_memory" and report is not None and code == OutOfMemoryError.exit_code
    steps = result.progress.step
    return {"ok": right, "lines": lines, "status": result.status, "step": steps, "says": lines[0]}


def run_again(bench: Bench) -> dict[str, Any]:
    """Return how a run of the same process ends after one that ran out of memory."""
    from peftlab.runs.display import NoDisplay
    from peftlab.runs.run import train
    from proof.training import free_memory

    free_memory()
    result = train(bench.tiny("lora", {"run.output": "again"}), display=NoDisplay())
    return {"ok": result.status == "finished", "says": result.status}
