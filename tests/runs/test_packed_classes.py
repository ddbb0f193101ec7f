"""A classifier whose rows are packed: an interrupted run resumes to the byte, and padded rows give the same losses."""

from __future__ import annotations

import json

import pytest

from peftlab.errors import StoppedError
from peftlab.recipe.schema import Recipe
from peftlab.runs.display import NoDisplay
from peftlab.runs.run import train
from peftlab.runs.verify import differing, load_final
from tests.runs.recipes import shallow_sections


@pytest.fixture
def source(tmp_path):
    rows = [{"text": "word " * (number % 7 + 1) + str(number), "label": "ab"[number % 2]} for number in range(24)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def recipe(source, name: str, run=None, **speed) -> Recipe:
    sections = shallow_sections("lora", source.parent / name, batch_size=4, steps=6, speed=speed)
    sections["model"] |= {"task": "sequence-classification"}
    sections["data"] = {"train": str(source), "evaluation": 4, "format": "classification", "max_length": 32}
    sections["evaluation"] = {"metrics": ["accuracy"]}
    sections["run"] |= {"save_every": 3} | (run or {})
    return Recipe.model_validate(sections)


def losses(folder) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["event"] == "train"]


@pytest.mark.slow
def test_a_packed_classifier_resumes_exactly_and_has_the_losses_of_padded_rows(source):
    straight = train(recipe(source, "straight"), display=NoDisplay())
    assert straight.speed.uses("packing")
    with pytest.raises(StoppedError):
        train(recipe(source, "stopped", {"stop_after": 4}), display=NoDisplay())
    train(recipe(source, "stopped"), resume=True, display=NoDisplay())
    same = differing(load_final(source.parent / "straight"), load_final(source.parent / "stopped"))
    assert all(same.values()) and len(same) > 20
    padded = train(recipe(source, "padded", packing="off"), display=NoDisplay())
    assert not padded.speed.uses("packing")
    assert losses(source.parent / "straight") == pytest.approx(losses(source.parent / "padded"), rel=1e-5)
