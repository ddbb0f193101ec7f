"""Runs killed at random instants end with the bytes of one that was not; scripts/kill_test kills a thousand times."""

from __future__ import annotations

import pytest

from tests.runs.kills import CASES, CHOSEN, kill_runs


def check(figures, kills):
    assert figures.mismatches == figures.faults == []
    assert figures.kills >= kills and figures.finished >= 1
    assert figures.compared > 60 * figures.finished


@pytest.mark.parametrize("task", ["causal-lm", "sequence-classification"])
def test_thirty_runs_killed_at_random_instants_resume_to_the_bytes_of_a_straight_one(tmp_path, task):
    cases = [case for case in CASES if (case.task, case.processes) == (task, 1)]
    check(kill_runs(tmp_path, kills=30, seed=2, cases=cases), 30)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sixty_kills_over_all_methods_tasks_and_processes(tmp_path):
    check(kill_runs(tmp_path, kills=60, seed=1, cases=CASES), 60)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", CHOSEN, ids=lambda case: case.name)
def test_a_process_killed_while_weights_are_chosen_changes_nothing(tmp_path, case):
    """Early ends, averages of weights and of checkpoints, the best step: one of two processes is killed."""
    check(kill_runs(tmp_path, kills=4, seed=3, cases=[case]), 4)
