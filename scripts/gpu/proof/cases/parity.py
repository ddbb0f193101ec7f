"""Six steps in float32 from equal weights on equal rows: losses and gradient norms of the CPU and of the device."""

from __future__ import annotations

from proof.bench import FLOAT32, Bench

STEPS = 6
# Rounding of float32 in another order of sums; more would be another computation.
TOLERANCE = 1e-4


def run(bench: Bench) -> None:
    from peftlab.methods import METHODS

    for method in METHODS:
        with bench.case(method) as case:
            case |= compare(bench, method)


def compare(bench: Bench, method: str) -> dict:
    """Return both sides' losses and norms, and the largest difference relative to the CPU's."""
    from proof.training import build, copy_tensors, trained

    settings = FLOAT32 | {"training.frozen_dropout": "off"}
    settings |= {"method.compute_dtype": "float32"} if method == "qlora" else {}
    reference = build(bench.tiny(method, settings | {"run.device": "cpu"}))
    other = build(bench.tiny(method, settings))
    copy_tensors(reference.model, other.model)
    start = {name: weight.detach().clone() for name, weight in trained(reference.model).items()}
    sides = {
        name: [one.step(number) for number in range(1, STEPS + 1)] for name, one in (("cpu", reference), ("gpu", other))
    }
    losses, norms = ([[step[place] for step in side] for side in (sides["cpu"], sides["gpu"])] for place in range(2))
    difference = max(abs(ours / theirs - 1) for theirs, ours in zip(*losses, strict=True))
    of_norms = max(abs(ours / theirs - 1) for theirs, ours in zip(*norms, strict=True))
    moved = any(bool((weight != start[name]).any()) for name, weight in trained(reference.model).items())
    return {
        "ok": difference <= TOLERANCE and moved,
        "losses": dict(zip(sides, losses, strict=True)),
        "norms": dict(zip(sides, norms, strict=True)),
        "difference": difference,
        "says": f"losses differ by {difference:.1e}, norms by {of_norms:.1e}",
    }
