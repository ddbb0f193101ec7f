"""How often a step of the loop makes the host wait for the device: the profiler's count of two runs, subtracted."""

from __future__ import annotations

from collections import Counter
from typing import Any
from unittest import mock

from proof.bench import WITHOUT_EVALUATION, Bench, Settings

SHORT, LONG = 3, 7
# What makes the host wait: CUDA's own calls, and torch's reading of one number.
WAITS = (
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "aten::_local_scalar_dense",
)
COUNTED = (*WAITS, "cudaLaunchKernel", "cudaMemcpyAsync")


def run(bench: Bench) -> None:
    variants: dict[str, Settings] = {"lora": {}}
    if not bench.pretend:
        variants |= {
            "qlora": {},
            "qlora int8": {"method.quantization": "int8"},
            "full": {},
            "full adamw_8bit": {"training.optimizer": "adamw_8bit"},
        }
    for name, settings in variants.items():
        with bench.case(name) as case:
            case |= count_waits(bench, name, settings)


def count_waits(bench: Bench, name: str, settings: Settings) -> dict[str, Any]:
    """Return how many more calls of each kind the longer of two runs makes, for each of its further steps."""
    method = name.split()[0]
    counts = [profile_loop(bench, method, settings, steps) for steps in (SHORT, LONG)]
    further = {call: (counts[1][call] - counts[0][call]) / (LONG - SHORT) for call in COUNTED}
    waits = sum(further[call] for call in WAITS if call.startswith("cuda") or bench.pretend)
    reads = further["aten::_local_scalar_dense"]
    return {"a_step": further, "waits": waits, "says": f"{waits:.1f} waits and {reads:.1f} numbers read a step"}


def profile_loop(bench: Bench, method: str, settings: Settings, steps: int) -> Counter:
    """Return how often each call was made in the loop of a run that logs only its first and last step."""
    from peftlab.runs import training
    from peftlab.runs.display import NoDisplay
    from peftlab.runs.run import train
    from proof.training import fresh_world

    fresh_world(bench.device)
    own = {"training.steps": steps, "run.log_every": 1000, "run.output": f"{method}-{steps}"}
    recipe = bench.tiny(method, {**WITHOUT_EVALUATION, **own, **settings})
    counts: Counter = Counter()
    run_loop = training.run_loop

    def profiled(*arguments: Any) -> Any:
        with torch_profiler(bench.device) as profiler:
            progress = run_loop(*arguments)
        counts.update({event.key: event.count for event in profiler.key_averages()})
        return progress

    with mock.patch.object(training, "run_loop", profiled):
        train(recipe, overwrite=True, display=NoDisplay())
    return counts


def torch_profiler(device: str) -> Any:
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    return profile(activities=kinds, acc_events=True)
