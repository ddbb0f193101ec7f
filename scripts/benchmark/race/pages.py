"""Medians of a race, and their lines in the terminal."""

from __future__ import annotations

from statistics import fmean, median
from typing import Any


def summarise(race: dict[str, Any], peak_flops: float) -> dict[str, Any]:
    """Return each peer's medians over its runs, and how far its losses are from ours."""
    floor = race["flops_of_a_step"] / peak_flops
    all_ours = [run for run in race["stamps"].get("peftlab", []) if "wall" in run]
    ours = all_ours[0] if all_ours else None
    table = {}
    for peer, runs in race["stamps"].items():
        whole = [run for run in runs if "wall" in run]
        if not whole:
            table[peer] = {"error": runs[-1]["error"] if runs else "no run"}
            continue
        seconds = median(fmean(wall_seconds(run, race["warm_up"])) for run in whole)
        processor = median(processor_seconds(run, race["warm_up"]) for run in whole)
        steps = len(whole[0]["wall"]) - race["warm_up"]
        table[peer] = {
            "step_seconds": seconds,
            "step_processor_seconds": processor,
            "tokens_per_second": race["tokens"] / steps / seconds,
            "targets_per_second": race["targets"] / steps / seconds,
            "peak_bytes": median(run["peak_bytes"] for run in whole),
            "first_step_seconds": median(run["wall"][0] for run in whole),
            "processor_seconds": median(run["processor"][-1] for run in whole),
            "share_of_floor": floor / seconds,
            "products_and_attention_seconds": median(map(seconds_that_remain, whole)),
            "share_of_products": median(seconds_that_remain(run) / run["operations"]["step"] for run in whole),
            "loss_difference": difference(ours, whole[0]) if ours else None,
            "ratio": ratio(all_ours, whole, race["warm_up"]) if ours else None,
        }
    return {"floor_seconds": floor, "medians": table}


def wall_seconds(run: dict[str, Any], warm_up: int) -> list[float]:
    """Return the seconds of each timed step by the clock, without those in which it waited for its turn."""
    return [end - begun for begun, end in zip(run["begun"][warm_up:], run["wall"][warm_up:], strict=True)]


def processor_seconds(run: dict[str, Any], warm_up: int) -> float:
    """Return the mean processor seconds of the timed steps."""
    stamps = run["processor"]
    return float(stamps[-1] - stamps[warm_up - 1]) / (len(stamps) - warm_up)


def ratio(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], warm_up: int) -> float:
    """Return how many times as long as ours a peer's steps take: the median over steps of one round with equal rows."""
    runs = zip(ours, theirs, strict=False)
    pairs = (pair for both in runs for pair in zip(*(wall_seconds(run, warm_up) for run in both), strict=True))
    return median(other / own for own, other in pairs)


def seconds_that_remain(run: dict[str, Any]) -> float:
    """Return the seconds of matrix products and attention of the profiled step, which has rows of its own."""
    return run["operations"]["products"] + run["operations"]["attention"]


def difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    return max(abs(a - b) for a, b in zip(one["losses"], other["losses"], strict=False))


HEAD = "peer     supervised/s ratio cpu/step peak MiB first s floor products loss diff."


def describe(name: str, race: dict[str, Any]) -> str:
    """Return the lines of a race, in 80 columns; `ratio` is peftlab's speed over the peer's, the median of all steps.

    `products` is the share of a step that matrix products and attention take: the rest is all that can be saved.
    """
    table = race["medians"]
    title = f"{name}: {race['title']}, {race['precision']}"
    return "\n".join([title, HEAD, *(line_of(peer, row) for peer, row in table.items())])


def line_of(peer: str, row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{peer:<8} failed: {row['error'].splitlines()[-1][:60]}"
    times = float("nan") if row["ratio"] is None else row["ratio"]
    return (
        f"{peer:<8} {row['targets_per_second']:>12,.0f} {times:>5.2f} {row['step_processor_seconds']:>8.2f}"
        f" {row['peak_bytes'] / 2**20:>8,.0f} {row['first_step_seconds']:>7.1f} {row['share_of_floor']:>5.0%}"
        f" {row['share_of_products']:>8.0%} {row['loss_difference'] or 0:>10.1e}"
    )
