"""The seeds and rows that a difference needs: against textbook values, and against the report's own test."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from peftlab.cli.app import run
from peftlab.comparison.power import Power
from peftlab.comparison.rows import read_table
from peftlab.comparison.statistics import Difference, compare_pairs
from peftlab.evaluation.resampling import draw_metric

from .folders import Maker
from .simulation import simulate_losses


def test_seeds_alone_give_the_power_of_students_test():
    """Two groups of S: the noncentral t distribution with 2 (S - 1) degrees of freedom; Welch's test has a few less."""
    power = Power(of_seed=1.0, of_row=0.0, rows=100)
    for seeds in (8, 12, 20):
        freedom, shift = 2 * (seeds - 1), 1.0 / (2 / seeds) ** 0.5
        limit = stats.t.ppf(0.975, freedom)
        expected = stats.nct.sf(limit, freedom, shift) + stats.nct.cdf(-limit, freedom, shift)
        assert power.chance(1.0, seeds) == pytest.approx(expected, abs=0.025)
    assert power.seeds_for(1.0) == pytest.approx(17, abs=1)  # the textbook's 17 a group for one standard deviation


def test_without_a_difference_the_chance_is_five_percent_and_falls_with_the_pairs():
    assert Power(1.0, 0.0, 100).chance(0.0, 5) == pytest.approx(0.05, abs=0.011)
    assert Power(1.0, 0.0, 100, pairs=15).chance(0.0, 5) < 0.01


def test_rows_alone_need_as_many_as_a_paired_test():
    power = Power(of_seed=0.0, of_row=1.0, rows=100)
    assert power.rows_for(0.28, seeds=3) == pytest.approx(103, abs=7)  # (1.96 + 0.84)² / 0.28² = 100
    assert power.seeds_for(0.1) is None  # no seed adds rows


@pytest.mark.parametrize("effect", [0.05, 0.1])
def test_the_chance_is_the_share_of_comparisons_that_the_report_calls_different(effect):
    random, found, measured = np.random.default_rng(0), 0, []
    for _ in range(400):
        runs, owners = simulate_losses(random, [0.0, effect], of_seed=0.05, of_row_and_variant=0.1, of_rest=0.1)
        (pair,) = compare_pairs(draw_metric("loss", runs, 200, random), owners)
        found += pair.significant
        measured.append(Power.measured([pair], {pair.first: 3, pair.second: 3}, 100))
    of_seed, of_row = (np.mean([getattr(one, name) for one in measured]) for name in ("of_seed", "of_row"))
    assert of_seed == pytest.approx(0.05**2 + 0.1**2 / 100, rel=0.15)
    assert of_row == pytest.approx(2 * 0.1**2 + 2 * 0.1**2 / 3 - 2 * 0.1**2 / 3, rel=0.3)
    assert Power(of_seed, of_row, 100).chance(effect, 3) == pytest.approx(found / 400, abs=0.07)


def test_no_fewer_rows_are_planned_than_a_report_tests():
    """With 5 rows or fewer a report covers the chance of the seeds alone, however large the difference is."""
    power = Power(of_seed=0.01**2, of_row=0.05**2, rows=200)
    assert power.rows_for(1.0, seeds=5) == 6


def test_seeds_that_are_lost_leave_the_variance_of_a_seed_as_it_is():
    """Of variants with 3 and 2 seeds of variance 0.04, the difference has 0.04 (1/3 + 1/2)."""
    pair = Difference("a", "b", 0.1, 0.0, 0.2, 0.5, 0.5, of_seeds=0.04 * (1 / 3 + 1 / 2), of_rows=0.09 / 200)
    power = Power.measured([pair], {"a": 3, "b": 2}, 200)
    assert (power.of_seed, power.of_row) == pytest.approx((0.04, 0.09))


def test_what_was_not_measured_plans_nothing():
    assert Power.measured([], {}, 100) is None


def plan(folder: Path, capsys, *arguments: str) -> tuple[int, str, str]:
    recipe = str(Path(__file__).resolve().parents[2] / "recipes" / "comparisons" / "tiny.yaml")
    code = run(["compare", recipe, "--power", "0.1", "--output", str(folder), *arguments])
    return code, *capsys.readouterr()


def test_what_a_comparison_measured_is_planned_with_its_source_and_its_lost_seeds(tmp_path, capsys):
    """The seeds' standard deviation is that of the runs' own means; a lost seed of one variant hides nothing."""
    folder = Maker(tmp_path, methods=("lora", "bitfit"), rows=60).write()
    whole = json.loads(plan(folder, capsys, "--json")[1])
    assert (whole["metric"], whole["measured_in"], whole["plans"][0]["pairs"]) == ("loss", str(folder), 1)
    table = read_table(folder)
    means = [[one.metrics["test_after"]["loss"] for one in row.trials] for row in table.rows]
    by_hand = np.mean([np.var(values, ddof=1) for values in means]) ** 0.5
    assert whole["plans"][0]["seed_spread"] == pytest.approx(by_hand, rel=1e-6)
    (folder / "runs" / table.rows[0].trials[0].report.run / "result.json").unlink()
    means[0] = means[0][1:]
    weights = [1 / len(values) for values in means]
    by_hand = np.average([np.var(values, ddof=1) for values in means], weights=weights) ** 0.5
    assert json.loads(plan(folder, capsys, "--json")[1])["plans"][0]["seed_spread"] == pytest.approx(by_hand, rel=1e-6)


def test_variances_of_another_metric_and_none_at_all_are_refused(tmp_path, capsys):
    folder = Maker(tmp_path, methods=("lora", "bitfit"), rows=60).write()
    code, _, told = plan(folder, capsys, "--metric", "exact_match")
    assert code == 2 and f"the comparison in {folder} measured loss, not exact_match" in told
    for path in (folder / "runs").glob("*/*.json"):
        found = json.loads(path.read_text())
        if path.name == "scores.json":
            for scores in found.values():
                scores.update(loss=[2.0] * 60, count=[1] * 60)
        elif path.name == "result.json":
            found["metrics"] = {name: {"loss": 2.0} for name in found["metrics"]}
        path.write_text(json.dumps(found))
    code, _, told = plan(folder, capsys)
    assert code == 2 and "neither seeds nor rows made a difference in loss" in told and told.count("\n") == 1
