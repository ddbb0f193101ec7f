"""A state that is written in the background is the one that was copied, and its errors are raised."""

from __future__ import annotations

import threading

import pytest
import torch

from peftlab.checkpoint.tensors import encode_state, save_state, write_state
from peftlab.checkpoint.writer import CheckpointWriter
from peftlab.errors import StorageError


def state():
    shared = torch.arange(8.0)
    return {"weights": {"a": shared, "view": shared[2:5], "b": torch.randn(3, 2).T}, "twice": [shared, shared], "n": 3}


def files_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_held_copy_is_written_as_the_state_was_whatever_became_of_it(tmp_path):
    (tmp_path / "now").mkdir(), (tmp_path / "later").mkdir()
    one = state()
    save_state(tmp_path / "now", "state", one)
    held = encode_state(one, "state", copy=True)
    for tensor in one["weights"].values():
        tensor.zero_()
    one["twice"].clear()
    write_state(tmp_path / "later", "state", held)
    assert files_in(tmp_path / "now") == files_in(tmp_path / "later")


def test_writes_come_in_order_and_the_next_waits_for_the_former():
    writer, go, order = CheckpointWriter(), threading.Event(), []
    writer.start(lambda: (go.wait(10), order.append(1)))
    assert order == [], "it is written beside"
    writer.check()
    threading.Timer(0.05, go.set).start()
    writer.start(lambda: order.append(2))
    assert order[0] == 1
    writer.close()
    assert order == [1, 2]
    assert writer.seconds >= writer.longest_seconds >= 0.04


def fail():
    raise StorageError("the disk is full")


@pytest.mark.parametrize("next_call", [lambda w: w.wait(), lambda w: w.start(fail), lambda w: w.close()])
def test_what_a_write_met_is_raised_by_the_next_call_and_once(next_call):
    writer = CheckpointWriter()
    writer.start(fail)
    with pytest.raises(StorageError, match="the disk is full"):
        next_call(writer)
    writer.wait()


def test_a_failure_is_noticed_without_waiting():
    writer, go = CheckpointWriter(), threading.Event()
    writer.start(lambda: (go.wait(10), fail()))
    writer.check()
    go.set()
    with pytest.raises(StorageError):
        for _ in range(1000):
            writer.check()
            threading.Event().wait(0.01)


def test_another_error_is_not_hidden_by_that_of_the_last_write():
    writer = CheckpointWriter()
    writer.start(fail)
    writer.close(quietly=True)


def test_a_process_that_is_ended_by_another_thread_waits_for_the_write_that_has_begun():
    """As when the main thread waits for a device that waits for a dead process, while a checkpoint is written."""
    writer, begun, go, order = CheckpointWriter(), threading.Event(), threading.Event(), []
    writer.start(lambda: (begun.set(), go.wait(10), order.append("written")))
    begun.wait(10)
    watcher = threading.Thread(target=lambda: (writer.finish(), order.append("ended")))
    watcher.start()
    go.set()
    watcher.join(10)
    writer.close()
    assert order == ["written", "ended"]
