from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from peftlab.reports import Progress
from peftlab.runs.display import NoDisplay
from peftlab.training.recorder import Recorder
from peftlab.training.trackers import Trackers
from peftlab.world.open import open_world

WORLD = open_world("cpu")
NO_TRACKERS = Trackers(WORLD, (), "run", Path("-"), print)


def new_recorder(tmp_path):
    recorder = Recorder(WORLD, tmp_path / "metrics.jsonl", NoDisplay(), NO_TRACKERS, lambda: 123)
    recorder.start(10)
    return recorder


def lines(recorder):
    return [json.loads(line) for line in recorder.path.read_text().splitlines()]


def test_a_logged_loss_is_the_mean_over_all_supervised_tokens_since_the_last_line(tmp_path):
    recorder = new_recorder(tmp_path)
    recorder.add(torch.tensor(2.0), supervised=10, tokens=40)
    recorder.add(torch.tensor(5.0), supervised=30, tokens=60)
    recorder.log(Progress(step=2), torch.tensor(0.5), learning_rate=0.1)
    recorder.add(torch.tensor(1.0), supervised=5, tokens=9)
    recorder.log(Progress(step=3), torch.tensor(0.25), learning_rate=0.2)
    first, second = lines(recorder)
    assert first["loss"] == pytest.approx((2.0 * 10 + 5.0 * 30) / 40)
    assert second["loss"] == pytest.approx(1.0)
    assert (first["gradient_norm"], first["learning_rate"], first["memory_bytes"]) == (0.5, 0.1, 123)


def test_what_is_not_logged_yet_survives_a_restart(tmp_path):
    recorder = new_recorder(tmp_path)
    recorder.add(torch.tensor(2.0), supervised=10, tokens=40)
    other = new_recorder(tmp_path)
    other.restore(recorder.state())
    other.add(torch.tensor(5.0), supervised=30, tokens=60)
    other.log(Progress(step=2), torch.tensor(0.5), learning_rate=0.1)
    assert lines(other)[0]["loss"] == pytest.approx((2.0 * 10 + 5.0 * 30) / 40)


def test_rewinding_drops_later_lines_and_a_half_written_one(tmp_path):
    recorder = new_recorder(tmp_path)
    for step in (1, 2, 3):
        recorder.log_evaluation(step, {"loss": float(step)})
    with recorder.path.open("a") as file:
        file.write('{"event": "train", "st')
    recorder.rewind(2)
    assert [line["step"] for line in lines(recorder)] == [1, 2] == [line["step"] for line in recorder.history]
