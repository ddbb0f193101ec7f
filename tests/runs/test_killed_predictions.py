"""`predict` ended by SIGKILL and resumed: no row twice, none lost, the bytes of a call that was not ended."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from peftlab.recipe.schema import Recipe
from peftlab.runs.display import NoDisplay
from peftlab.runs.predict import predict
from peftlab.runs.run import train
from tests.runs.chats import chat_sections
from tests.tasks.answering import answering_recipe, write_family, write_pairs
from tests.tasks.measuring import recipe_for, write_texts
from tests.tasks.tagging import METHODS, tagging_recipe, write_model, write_sentences

LORA = METHODS["lora"]


def texts_run(folder: Path, task: str) -> Path:
    write_model(folder / "bert")
    for seed, name in enumerate(("train", "evaluation")):
        write_texts(folder / f"{name}.jsonl", 16, seed)
    train(recipe_for(task, folder, LORA, "run"), display=NoDisplay())
    return folder / "run"


def topics_run(folder: Path) -> Path:
    write_model(folder / "bert")
    rows = [{"text": f"{word} the file", "label": word} for word in ("open", "Path", "OSError")] * 4
    for name in ("train", "evaluation"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sections = recipe_for("regression", folder, LORA, "run").model_dump()
    sections["model"]["task"], sections["data"]["format"] = "sequence-classification", "classification"
    sections["evaluation"]["metrics"] = ["accuracy"]
    train(Recipe.model_validate(sections), display=NoDisplay())
    return folder / "run"


def tags_run(folder: Path) -> Path:
    write_model(folder / "bert")
    for seed, name in enumerate(("train", "evaluation")):
        write_sentences(folder / f"{name}.jsonl", 16, seed)
    train(tagging_recipe(folder, LORA, "run"), display=NoDisplay())
    return folder / "run"


def answers_run(folder: Path) -> Path:
    write_family(folder / "t5", "t5")
    for seed, name in enumerate(("train", "evaluation")):
        write_pairs(folder / f"{name}.jsonl", 16, seed)
    train(answering_recipe(folder, "t5", {"type": "lora", "rank": 2}, "run"), display=NoDisplay())
    return folder / "run"


def chats_run(folder: Path) -> Path:
    sections = chat_sections(folder, max_new_tokens=4)
    sections["training"]["steps"] = 2
    sections["evaluation"] = {"generation": {"max_new_tokens": 4, "examples": 0}}
    train(Recipe.model_validate(sections), display=NoDisplay())
    return folder / "run"


RUNS = {
    "regression": lambda folder: texts_run(folder, "regression"),
    "multi-label-classification": lambda folder: texts_run(folder, "multi-label-classification"),
    "sequence-classification": topics_run,
    "token-classification": tags_run,
    "sequence-to-sequence": answers_run,
    "causal-lm": chats_run,
}


def row_of(task: str, number: int, chance: random.Random) -> dict[str, Any]:
    words = [chance.choice(["open", "Path", "the", "a", "file"]) for _ in range(chance.randint(2, 6))]
    shapes = {
        "token-classification": {"words": words},
        "sequence-to-sequence": {"prompt": " ".join(words)},
        "causal-lm": {"messages": [{"role": "user", "content": " ".join(words)}]},
    }
    return shapes.get(task, {"text": " ".join(words)}) | {"number": number}


def write_rows(path: Path, task: str, count: int) -> Path:
    chance = random.Random(5)
    path.write_text("".join(json.dumps(row_of(task, number, chance)) + "\n" for number in range(count)))
    return path


def begin(run: Path, source: Path, out: Path) -> BaseProcess:
    resume = out.with_name(f"{out.name}.progress").exists()
    options = {"resume": resume, "overwrite": not resume}
    process = multiprocessing.get_context("fork").Process(target=predict, args=(run, str(source), out), kwargs=options)
    process.start()
    return process


def rows_done(out: Path) -> int:
    try:
        return json.loads(out.with_name(f"{out.name}.progress").read_text())["rows"]
    except (OSError, ValueError):
        return 0


def kill_until_done(run: Path, source: Path, out: Path, kills: int, rows: int) -> Iterator[int]:
    """Kill calls when they have written about another part of the rows; yield the rows done after each kill."""
    chance = random.Random(1)
    for number in range(kills):
        wanted, process = rows * number // (kills + 1), begin(run, source, out)
        while process.is_alive() and rows_done(out) <= wanted:
            time.sleep(0.001)
        time.sleep(chance.random() * 0.02)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it was killed while it worked"
        yield rows_done(out)
    process = begin(run, source, out)
    process.join()
    assert process.exitcode == 0


def check(folder: Path, task: str, rows: int, kills: int) -> None:
    run, source = RUNS[task](folder), write_rows(folder / "in.jsonl", task, rows)
    done = list(kill_until_done(run, source, folder / "out.jsonl", kills, rows))
    assert done == sorted(done) and 0 < done[0] < done[-1] < rows
    found = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [row["number"] for row in found] == list(range(rows))
    assert all("prediction" in row and "prediction_error" not in row for row in found)
    predict(run, str(source), folder / "straight.jsonl")
    assert (folder / "out.jsonl").read_bytes() == (folder / "straight.jsonl").read_bytes()


def test_killed_predictions_resume_to_the_bytes_of_a_straight_call(tmp_path):
    check(tmp_path, "regression", rows=400, kills=2)


@pytest.mark.slow
@pytest.mark.parametrize("task", RUNS)
def test_killed_predictions_of_every_task_have_each_row_once(tmp_path, task):
    check(tmp_path, task, rows=2000, kills=4)


@pytest.mark.slow
def test_ten_thousand_rows_killed_eight_times_are_all_there_once(tmp_path):
    check(tmp_path, "regression", rows=10_000, kills=8)


def resident_peak(run: Path, source: Path, out: Path) -> int:
    """Return the highest resident bytes of a process that predicts, beyond those with which it begins."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe()

    def work() -> None:
        Path("/proc/self/clear_refs").write_text("5")
        begun = _status("VmRSS")
        predict(run, str(source), out)
        sender.send(_status("VmHWM") - begun)

    process = context.Process(target=work)
    process.start()
    peak = receiver.recv()
    process.join()
    return peak


def _status(name: str) -> int:
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(name))
    return int(line.split()[1]) * 1024


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path):
    run = RUNS["regression"](tmp_path)
    peaks = [
        resident_peak(run, write_rows(tmp_path / f"{count}.jsonl", "regression", count), tmp_path / f"{count}.out")
        for count in (1_000, 10_000)
    ]
    assert peaks[1] - peaks[0] < 8 * 2**20, peaks
