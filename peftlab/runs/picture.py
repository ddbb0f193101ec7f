"""The loss curve of a run as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Okabe and Ito's colours, told apart by colour-blind readers too.
BLUE, ORANGE = "#0072B2", "#D55E00"


def draw_losses(history: list[dict[str, Any]], title: str, path: Path) -> None:
    """Draw training and held-out loss against the step; nothing is drawn for a run without losses."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for event, label, style in (
        ("train", "training", {"color": BLUE, "linewidth": 1.5}),
        ("evaluation", "held out", {"color": ORANGE, "marker": "o", "linewidth": 1.5}),
    ):
        points = [(line["step"], line["loss"]) for line in history if line["event"] == event and "loss" in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    if not axes.lines:
        return
    axes.set(xlabel="optimiser step", ylabel="loss (nats)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
