"""Checkpoints in parts: each process writes its own, and they are read whole, or by as many processes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from peftlab.checkpoint.parts import Parts, count_parts, join, load_own, load_whole
from peftlab.checkpoint.store import clean_leftovers, find_latest, write_checkpoint
from peftlab.checkpoint.tensors import encode_state, save_state
from peftlab.errors import LaunchError, StorageError

WHOLE = torch.arange(21, dtype=torch.float32).reshape(7, 3)


def tree(process: int) -> dict:
    """What one of three processes has: rows 0 to 2, 3 to 5, and 6."""
    return {
        "weights": {"a": {"part": WHOLE.split(3)[process], "shape": (7, 3)}},
        "optimizer": {"state": {0: {"step": torch.tensor(4.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
    }


@pytest.fixture
def parts(tmp_path):
    return Parts(tmp_path / "checkpoints", 4, 3, lambda process: None)


def write(parts: Parts, processes=(2, 0, 1)) -> None:
    """Write a checkpoint with the parts of these processes, one after the other, while the main one waits."""

    def main(folder):
        save_state(folder, "state", {"progress": 4})
        return parts.collect(folder)

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(write_checkpoint, parts.root, parts.step, main, {})
        for process in processes:
            parts.write(process, encode_state(tree(process), "part"))
        waiting.result(30)


def test_parts_are_one_checkpoint_whose_digests_each_process_made(parts):
    write(parts)
    found, faults = find_latest(parts.root)  # every byte is verified
    assert found is not None and faults == [] and count_parts(found.path) == 3
    assert [path.name for path in parts.root.iterdir()] == ["step-000004"], "nothing is left beside it"


def test_parts_are_read_whole_and_by_as_many_processes_as_wrote_them(parts):
    write(parts)
    folder = parts.root / "step-000004"
    for state in (load_whole(folder), load_own(folder, 1, 2)):
        assert torch.equal(state["weights"]["a"], WHOLE) and state["progress"] == 4
        assert state["optimizer"]["state"][0]["step"] == 4 and state["optimizer"]["param_groups"][0]["lr"] == 0.1
    own = load_own(folder, 2, 3)["weights"]["a"]
    assert torch.equal(own["part"], WHOLE[6:]) and own["shape"] == (7, 3)


def test_a_process_without_rows_adds_none():
    empty = {"part": torch.empty(0, 3), "shape": (7, 3)}
    assert torch.equal(join([{"part": WHOLE, "shape": (7, 3)}, empty]), WHOLE)


def test_a_checkpoint_of_an_earlier_version_or_of_one_process_is_whole(tmp_path):
    save_state(tmp_path, "state", {"weights": {"a": WHOLE}})
    assert torch.equal(load_own(tmp_path, 0, 2)["weights"]["a"], WHOLE)


def test_a_part_that_cannot_be_written_fails_on_both_processes_and_leaves_no_checkpoint(parts, monkeypatch):
    def fail(*_):
        raise StorageError("no space")

    with ThreadPoolExecutor(1) as pool, monkeypatch.context() as patch:
        parts.write(0, encode_state(tree(0), "part"))
        patch.setattr("peftlab.checkpoint.parts.write_state", fail)
        waiting = pool.submit(write_checkpoint, parts.root, 4, parts.collect, {})
        with pytest.raises(StorageError, match="no space"):
            parts.write(1, encode_state(tree(1), "part"))
        with pytest.raises(StorageError, match="no space"):
            waiting.result(30)
    assert list(parts.root.iterdir()) == []


def test_a_part_that_never_comes_does_not_hold_up_a_run_that_ends(parts):
    parts.write(0, encode_state(tree(0), "part"))
    missing = Parts(parts.root, 4, 3, lambda process: LaunchError(f"process {process} ended", [process]))
    with pytest.raises(LaunchError, match="process 1 ended"):
        write_checkpoint(parts.root, 4, missing.collect, {})
    assert list(parts.root.iterdir()) == []


def test_parts_of_a_killed_run_are_removed(parts):
    parts.write(1, encode_state(tree(1), "part"))
    clean_leftovers(parts.root)
    assert list(parts.root.iterdir()) == []
