"""`peftlab cache` as a person calls it, and what a run says of the tokens that it kept or mapped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from peftlab.cli.app import run
from peftlab.data.cached import read_data
from peftlab.data.token_store import TokenStore
from peftlab.errors import UsageError
from peftlab.models.tokenizer import load_tokenizer
from peftlab.recipe.schema import Data, Model
from peftlab.reports import MemoryReport
from peftlab.runs.display import NoDisplay
from peftlab.runs.measured import find_measured, keep_measured
from peftlab.runs.run import train
from peftlab.tasks import TASKS
from tests.runs.recipes import shallow_recipe


@pytest.fixture
def answer(capfd):
    def call(*arguments):
        code = run([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return code, " ".join(captured.out.split()), captured.err

    return call


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTLAB_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept" / "tokens"


def token_switch(result):
    return next(one for one in result.speed.switches if one.name == "token_cache")


def start(path, **changes):
    recipe = shallow_recipe("lora", path)
    training = recipe.training.model_copy(update={"speed": recipe.training.speed.model_copy(update=changes)})
    return train(recipe.model_copy(update={"training": training}), display=NoDisplay())


def test_a_run_on_kept_tokens_is_the_run_without_them_and_says_where_they_are_from(tmp_path, folder):
    plain, made, read = (
        start(tmp_path / name, token_cache=switch) for name, switch in (("a", "off"), ("b", "auto"), ("c", "on"))
    )
    assert token_switch(plain).reason == "switched off by the recipe" and not token_switch(plain).used
    assert token_switch(made).reason.startswith("rows were tokenised and kept (")
    assert token_switch(read).reason.startswith("tokens of an earlier start were mapped (")
    assert plain.data == made.data == read.data
    assert plain.metrics == made.metrics == read.metrics
    weights = [(tmp_path / name / "weights" / "adapter_model.safetensors").read_bytes() for name in "abc"]
    held_out = [{file.name: file.read_bytes() for file in (tmp_path / name / "held_out").glob("*")} for name in "abc"]
    assert weights[0] == weights[1] == weights[2] and held_out[0] == held_out[1] == held_out[2]


def test_tokens_that_have_to_be_kept_and_cannot_be_stop_the_run(tmp_path, folder):
    folder.parent.write_text("a file")
    with pytest.raises(UsageError, match=r"training\.speed\.token_cache: it is on, but .*; set it to auto"):
        start(tmp_path / "on", token_cache="on")


def test_the_cache_is_listed_and_deleted(answer, tmp_path, folder):
    code, out, _ = answer("cache")
    assert code == 0 and out.replace("\n", "").startswith(f"{folder}: 0 B in 0 entries")
    section = Data(train="builtin:docstrings[train[:9]]", evaluation=2)
    read_data(section, TASKS["causal-lm"], 0, load_tokenizer(Model(name="builtin:tiny")), TokenStore())
    code, out, _ = answer("cache")
    assert code == 0 and "in 1 entry" in out and "builtin:docstrings" in out
    found = json.loads(answer("cache", "--json")[1])
    files = [
        path
        for path in folder.glob("*/*")
        if path.name != "entry.json" and path.parent.name not in ("locks", "building")
    ]
    assert found["bytes"] == sum(path.stat().st_size for path in files) == found["entries"][0]["bytes"] > 0
    assert json.loads(answer("cache", "--clear", "--unused", "1", "--json")[1])["entries"] == []
    entry = next(path for path in folder.iterdir() if len(path.name) == 64)
    os.utime(entry, (time.time() - 2 * 86400,) * 2)
    code, out, _ = answer("cache", "--clear", "--unused", "1")
    assert code == 0 and "in 1 entry; deleted" in out
    assert not entry.exists() and json.loads(answer("cache", "--json")[1])["entries"] == []
    code, _, errors = answer("cache", "--unused", "1")
    assert code == 2 and "add --clear" in errors


def test_measurements_of_memory_are_listed_and_deleted_with_the_tokens(answer, folder):
    memory = folder.parent / "memory"
    report = MemoryReport(source="measured", device="cpu", peak_bytes=7)
    for name in ("old", "new"):
        keep_measured(name, report)
    os.utime(memory / "old.json", (time.time() - 3 * 86400,) * 2)
    size = sum(path.stat().st_size for path in memory.iterdir())
    found = json.loads(answer("cache", "--json")[1])["measurements"]
    assert found == {"folder": str(memory), "bytes": size, "count": 2}
    assert f"{memory}: {size:,} B in 2 memory measurements" in answer("cache")[1]
    assert "in 1 memory measurement; deleted" in answer("cache", "--clear", "--unused", "2")[1]
    assert [path.name for path in memory.iterdir()] == ["new.json"]
    os.utime(memory / "new.json", (time.time() - 3 * 86400,) * 2)
    assert find_measured("new") == report  # which is a use of it
    assert "0 measurements" not in answer("cache", "--clear", "--unused", "2")[1] and find_measured("new") == report
    answer("cache", "--clear")
    assert find_measured("new") is None


def test_evaluations_of_a_base_are_listed_and_deleted_too(answer, folder):
    kept = folder.parent / "evaluations"
    kept.mkdir(parents=True)
    (kept / "one.json").write_text("{}")
    assert json.loads(answer("cache", "--json")[1])["base_figures"] == {"folder": str(kept), "bytes": 2, "count": 1}
    assert f"{kept}: 2 B in 1 base evaluation" in answer("cache")[1]
    assert "in 1 base evaluation; deleted" in answer("cache", "--clear")[1] and not list(kept.iterdir())


def test_the_cache_is_listed_without_torch():
    code = "import sys, peftlab.runs.cache; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
