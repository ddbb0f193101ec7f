"""The names under which a run's seconds are recorded."""

from __future__ import annotations

FIRST_STEP = "first_step"
# Seconds of processors that the main process used in all phases; on a busy machine they say more than the clock.
PROCESSOR = "processor"
PHASES = ("load", "evaluation_before", "apply", "training", "evaluation_after", "save", "latency")
