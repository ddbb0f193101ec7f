"""The report's claims at their level: a few designs simulated here, and the committed result of all."""

from __future__ import annotations

import json

import pytest
from scipy import stats

TIMES = 300
TIMES_BLEU = 40  # a comparison takes 40 ms


@pytest.mark.parametrize(("metric", "tokens", "seeds", "variants"), [
    ("loss", "equal", 1, 3), ("loss", "heavy-tailed", 3, 2), ("exact_match", "equal", 5, 2), ("rougeL", "equal", 3, 4),
    ("bleu", "equal", 3, 2),
])  # fmt: skip
def test_equal_methods_are_called_different_in_five_percent_and_intervals_cover(
    script, metric, tokens, seeds, variants
):
    simulation = script("simulate_comparisons")
    times = TIMES_BLEU if metric == "bleu" else TIMES
    found = simulation.measure(simulation.Design(metric, tokens, seeds, variants), times)
    assert found["false_positive_share"] <= stats.binom.ppf(0.999, times, 0.05) / times
    if found["coverage"] is not None:
        assert found["coverage"] >= stats.binom.ppf(0.001, times, 0.94) / times


def test_the_committed_result_has_every_design_within_one_percent_of_its_level(script):
    simulation = script("simulate_comparisons")
    results = json.loads(simulation.OUTPUT.read_text())
    keys = [{key: one[key] for key in simulation.asdict(simulation.Design(""))} for one in results]
    assert keys == [simulation.asdict(design) for design in simulation.designs()]
    for one in results:
        assert one["times"] == 2000 and one["false_positive_share"] <= 0.06, one
        assert one["coverage"] is None or one["coverage"] >= 0.94, one
