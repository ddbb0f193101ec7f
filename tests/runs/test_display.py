from __future__ import annotations

import io

import pytest
from rich.console import Console

from peftlab.runs.display import BarDisplay, LineDisplay, format_duration, format_line
from peftlab.runs.picture import draw_losses

TRAIN = {
    "event": "train",
    "step": 12345,
    "loss": 12.34567,
    "learning_rate": 1.5e-4,
    "tokens_per_second": 123456.7,
    "memory_bytes": 123 * 2**30,
    "seconds_left": 360_000,
}


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3725, "1:02:05")])
def test_durations_read_as_clocks(seconds, text):
    assert format_duration(seconds) == text


def test_a_line_shows_step_loss_learning_rate_speed_memory_and_time_left():
    line = format_line(TRAIN | {"step": 7, "memory_bytes": 2**30, "seconds_left": 65}, 20)
    assert line == "step     7/20  loss 12.3457  lr 1.5e-04  123457 tok/s  mem 1.00 GiB  left 1:05"


def test_evaluations_name_their_metrics():
    line = {"event": "evaluation", "step": 0, "loss": 1.5, "accuracy": 0.25}
    assert format_line(line, 20) == "before training  held out: loss 1.5000  accuracy 0.2500"
    assert format_line(line | {"step": 20}, 20).startswith("step    20/20  held out: ")


def test_a_metric_without_a_value_is_a_dash():
    line = {"event": "evaluation", "step": 20, "loss": 1.5, "bleu": None, "rare": 3.2e-6}
    assert format_line(line, 20) == "step    20/20  held out: loss 1.5000  bleu -  rare 3.2e-06"


def test_plain_lines_go_to_their_stream():
    stream = io.StringIO()
    LineDisplay(stream).update(TRAIN | {"step": 7}, 20)
    assert stream.getvalue().count("\n") == 1


def test_the_bar_fits_eighty_columns():
    display = BarDisplay()
    screen = io.StringIO()
    display.progress.live.console = display.console = Console(file=screen, force_terminal=True, width=80)
    display.update(TRAIN | {"step": 100, "memory_bytes": 2**30, "seconds_left": 65}, 200)
    display.close()
    display.console.print(display.progress.get_renderable())
    shown = [line for line in screen.getvalue().splitlines() if "loss" in line]
    assert shown and all("left 1:05" in line for line in shown), shown


def test_a_run_without_losses_draws_nothing(tmp_path):
    draw_losses([], "empty", tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()
