"""Streams and mixtures through a whole run: resumed to the byte, planned, and with the recognised format recorded."""

from __future__ import annotations

import json

import pytest

from peftlab.errors import RecipeError, StorageError
from peftlab.recipe.schema import Recipe
from tests.runs.recipes import shallow_sections
from tests.runs.test_resume import assert_equal_runs, start, stop


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def numbered(folder, name, count):
    return write(folder / name, *({"prompt": f"{name} {n}", "completion": f" answer {n}"} for n in range(count)))


def recipe(folder, data, run=None, **training) -> Recipe:
    sections = shallow_sections("lora", folder, **({"gradient_accumulation": 2, "batch_size": 2} | training))
    sections["run"] |= {"save_every": 3} | (run or {})
    sections["data"] = {"max_length": 32, **data}
    sections["evaluation"] = {"generation": {"examples": 0}}
    return Recipe.model_validate(sections)


@pytest.fixture
def sources(tmp_path):
    return [{"source": numbered(tmp_path, f"{n}.jsonl", 9 + n), "weight": 1 + n} for n in range(2)]


@pytest.mark.parametrize("streaming", [True, False])
def test_a_run_on_a_mixture_resumes_to_the_byte(tmp_path, sources, streaming):
    own = {"streaming": True, "shuffle_buffer": 4} if streaming else {}
    data = {"train": sources, "evaluation": numbered(tmp_path, "evaluation.jsonl", 3), **own}
    straight = start(recipe(tmp_path / "a", data))
    stop(recipe(tmp_path / "b", data, {"stop_after": 2}))
    stop(recipe(tmp_path / "b", data, {"stop_after": 5}), resume=True)
    resumed = start(recipe(tmp_path / "b", data), resume=True)
    assert [report.exact for report in resumed.resumes] == [True, True]
    assert_equal_runs(tmp_path / "a", tmp_path / "b")
    assert straight.progress == resumed.progress
    assert any("streamed" in note for note in straight.notes) == streaming
    assert straight.recipe["data"]["format"] == "completion"


def test_a_stream_that_has_changed_is_another_run(tmp_path, sources):
    data = {"train": sources, "streaming": True}
    stop(recipe(tmp_path / "b", data, {"stop_after": 2}))
    numbered(tmp_path, "1.jsonl", 12)
    with pytest.raises(StorageError, match="the checkpoint belongs to another run: .*data.train"):
        start(recipe(tmp_path / "b", data), resume=True)


def test_a_setting_that_does_not_suit_the_recognised_format_is_refused(tmp_path, sources):
    data = {"train": sources[0]["source"], "supervise": "last"}
    fault = r"data\.supervise: is for format chat only, not completion; remove it \(rows of data"
    with pytest.raises(RecipeError, match=fault):
        start(recipe(tmp_path / "c", data))


def test_what_was_recognised_and_skipped_is_noted(tmp_path):
    alpaca = [{"instruction": "Say", "input": "", "output": str(n)} for n in range(12)]
    train = write(tmp_path / "x.jsonl", *alpaca, {"instruction": "Say", "input": "", "output": ""})
    notes = start(recipe(tmp_path / "d", {"train": train, "on_error": "skip"})).notes
    assert any("data.train: read as completion (Alpaca: instruction, input, output)" in note for note in notes)
    assert f"data.train: bad rows skipped, as data.on_error says: 1 ({train}:13: the completion is empty)" in notes
