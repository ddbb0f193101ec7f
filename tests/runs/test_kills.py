"""Runs killed at random instants end with the bytes of one that was not; scripts/kill_test kills a thousand times."""

from __future__ import annotations

from tests.runs.kills import kill_runs


def test_killed_runs_resume_to_the_bytes_of_a_straight_one(tmp_path):
    figures = kill_runs(tmp_path, kills=3)
    assert figures.kills >= 3 and figures.finished >= 1
    assert figures.compared > 100 * figures.finished
    assert figures.mismatches == figures.faults == []
