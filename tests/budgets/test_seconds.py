"""Steps solved for seconds: the arithmetic of a pace, and a real short run that measures one."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftlab.budgets import seconds
from peftlab.budgets.seconds import Pace, read_pace
from peftlab.budgets.solve import apply_budget
from peftlab.cli.app import run
from peftlab.comparison.variants import Settings, open_variants
from peftlab.errors import UsageError
from peftlab.recipe.budget import parse_budget
from peftlab.recipe.comparison import list_variants
from peftlab.recipe.dump import dump_recipe
from peftlab.recipe.schema import Recipe
from peftlab.runs.jobs import Ending
from peftlab.runs.outcomes import read_outcome
from tests.runs.recipes import shallow_recipe, shallow_sections


def test_the_first_steps_are_not_in_the_pace():
    assert read_pace([5.0, 6.0, 9.0, 10.0, 12.0]) == Pace(3, 9.0, 1.5, 2)
    assert read_pace([5.0, 6.0]) == Pace(1, 5.0, 1.0, 1)
    assert read_pace([5.0]) == Pace(1, 5.0, 5.0, 1)


@given(st.floats(0.1, 50), st.floats(0.01, 5), st.floats(0.1, 5000))
def test_no_number_of_steps_is_nearer_within_2_percent_or_from_below(first, step, asked):
    pace = Pace(3, first, step, 20)
    steps = pace.steps(asked)
    error = pace.seconds(steps) - asked
    assert steps >= 1 and (steps == 1 or error <= (0.02 + 1e-6) * asked)
    more = pace.seconds(steps + 1) - asked
    assert more >= -1e-6 * asked
    assert more > 0.02 * asked * (1 - 1e-6) or abs(error) <= more + 1e-6 * asked


@pytest.fixture
def in_process(monkeypatch):
    """Run the command lines of jobs here, which saves the import of torch; gives the jobs."""
    done = []

    def call(job):
        done.append(job)
        code = run(job.command[3:])
        return Ending(job, *read_outcome(job.folder, job.log, code, None), 1.0)

    monkeypatch.setattr(seconds, "run_job", call)
    return done


def test_seconds_are_solved_by_the_pace_of_a_real_short_run(in_process, tmp_path, capfd):
    sections = shallow_sections("bitfit", tmp_path / "run", warmup=50, steps=1000)  # more than the short run has
    sections["run"]["save_every"] = 1
    sections["data"] |= {"test": "builtin:docstrings[test]", "test_rows": 9}
    recipe = Recipe.model_validate(sections)
    solved, report = apply_budget(recipe, parse_budget("seconds=900"))
    steps = solved.training.steps
    assert report.solved == {"training.steps": steps, "training.epochs": None}
    assert report.met and abs(report.error) <= 0.02
    assert report.reached == pytest.approx(steps * report.step, rel=0.05)
    assert "20 steps measured on this machine just now" in report.notes[0]
    assert solved.training.warmup == 50 and solved.run == recipe.run
    assert not (tmp_path / "run").exists() and len(in_process) == 1


def test_a_run_that_cannot_measure_gives_its_error(in_process, tmp_path, capfd):
    sections = shallow_sections("bitfit", tmp_path / "run")
    sections["data"]["train"] = str(tmp_path / "missing.csv")
    with pytest.raises(UsageError, match=r"the run that measures the step time failed: .*missing\.csv"):
        apply_budget(Recipe.model_validate(sections), parse_budget("seconds=60"))


def test_beside_other_jobs_the_pace_is_measured_with_a_share_of_the_cores(monkeypatch, tmp_path):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    threads = []

    def fail(job):
        threads.append(job.environment.get("OMP_NUM_THREADS"))
        return Ending(job, "failed", "no room", 1.0)

    monkeypatch.setattr(seconds, "run_job", fail)
    (tmp_path / "bitfit.yaml").write_text(dump_recipe(shallow_recipe("bitfit", tmp_path / "run")))
    variants = list_variants([tmp_path / "bitfit.yaml"], [])
    for jobs in (1, 2):
        settings = Settings(budgets=("seconds=60",), seeds=(0,), jobs=jobs)
        (variant,) = open_variants(variants, settings, "loss", tmp_path)
        assert "no room" in variant.error
    assert threads == [None, str(max(1, len(os.sched_getaffinity(0)) // 2))]
