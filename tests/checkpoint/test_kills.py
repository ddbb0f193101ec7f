"""A run that is killed by SIGKILL, wherever it is, loses nothing that it had committed."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.conftest import REPOSITORY


def kill(kind, folder, *arguments) -> list[dict]:
    command = [sys.executable, "-m", "tests.checkpoint.killed_writer", kind, folder, *arguments]
    done = subprocess.run(list(map(str, command)), cwd=REPOSITORY, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_whole(found: list[dict]) -> None:
    for each in found:
        assert each["right"] and each["faults"] == [] and each["left"] == [] and each["whole"] == each["named"], each


def test_killed_at_any_boundary_of_a_checkpoint_and_its_rotation(tmp_path):
    found = kill("boundaries", tmp_path, "next")
    assert_whole(found)
    steps = [each["step"] for each in found]
    assert steps == sorted(steps) and set(steps) == {9, 10}, "once committed, the new one stays"
    assert len(found) > 80 and steps.count(9) > 30 and steps.count(10) > 30
    assert {each["named"] for each in found if each["step"] == 10} == {3, 2, 1}, "rotation was killed in the middle"


def test_killed_at_any_boundary_of_replacing_a_checkpoint(tmp_path):
    found = kill("boundaries", tmp_path, "same")
    assert_whole(found)
    assert {each["step"] for each in found} == {9}
    runs = [each["run"] for each in found]
    assert runs == sorted(runs) and set(runs) == {1, 2}


def test_killed_at_any_boundary_of_cleaning(tmp_path):
    found = kill("boundaries", tmp_path, "clean")
    assert_whole(found)
    assert {each["step"] for each in found} == {9} and len(found) > 10


def assert_nothing_lost(found: list[dict]) -> None:
    assert_whole(found)
    assert all(each["step"] >= each["acknowledged"] for each in found)
    assert found[-1]["step"] > len(found) / 4, "the run went on between the kills"


def test_killed_at_a_hundred_random_instants(tmp_path):
    assert_nothing_lost(kill("instants", tmp_path / "run", 100, 0))


def test_killed_at_any_boundary_of_a_run_directory_it_can_be_taken_again_and_is_clean(tmp_path):
    found = kill("directory", tmp_path)
    assert all(each["left"] == [] for each in found), found
    assert all(each["weights"] in ([], ["old", "old"], ["new", "new"]) for each in found), "weights are whole or absent"
    assert all(each["weights"] for each in found if each["status"] == "finished")
    assert {each["status"] for each in found} == {None, "running", "finished"} and len(found) > 80
