"""`peftlab cache` as a person calls it, and what a run says of the tokens that it kept or mapped."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

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

OLD, NEW = "a" * 64, "b" * 64
# What people have in folders of these names, which peftlab's own names never are.
FOREIGN = (
    "tokens/corpus/train.bin",
    "tokens/building/site/index.html",
    f"tokens/building/{OLD}/index.html",
    "tokens/README",
    "memory/notes.json",
    "evaluations/mine.json",
    f"evaluations/{OLD}.txt",
    "plans/2026.json",
)


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
    keep_rows()
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
    for name in (OLD, NEW):
        keep_measured(name, report)
    os.utime(memory / f"{OLD}.json", (time.time() - 3 * 86400,) * 2)
    size = sum(path.stat().st_size for path in memory.iterdir())
    found = json.loads(answer("cache", "--json")[1])["measurements"]
    assert found == {"folder": str(memory), "bytes": size, "count": 2}
    assert f"{memory}: {size:,} B in 2 memory measurements" in answer("cache")[1]
    assert "in 1 memory measurement; deleted" in answer("cache", "--clear", "--unused", "2")[1]
    assert [path.name for path in memory.iterdir()] == [f"{NEW}.json"]
    os.utime(memory / f"{NEW}.json", (time.time() - 3 * 86400,) * 2)
    assert find_measured(NEW) == report  # which is a use of it
    assert "0 measurements" not in answer("cache", "--clear", "--unused", "2")[1] and find_measured(NEW) == report
    answer("cache", "--clear")
    assert find_measured(NEW) is None


def test_evaluations_of_a_base_are_listed_and_deleted_too(answer, folder):
    kept = folder.parent / "evaluations"
    kept.mkdir(parents=True)
    (kept / f"{NEW}.json").write_text("{}")
    assert json.loads(answer("cache", "--json")[1])["base_figures"] == {"folder": str(kept), "bytes": 2, "count": 1}
    assert f"{kept}: 2 B in 1 base evaluation" in answer("cache")[1]
    assert "in 1 base evaluation; deleted" in answer("cache", "--clear")[1] and not list(kept.iterdir())


def snapshot(folder):
    return {path.relative_to(folder): path.is_symlink() or path.read_text() for path in folder.rglob("*.*")}


def keep_rows():
    section = Data(train="builtin:docstrings[train[:9]]", evaluation=2)
    return read_data(section, TASKS["causal-lm"], 0, load_tokenizer(Model(name="builtin:tiny")), TokenStore())


def test_what_peftlab_did_not_write_is_neither_listed_nor_deleted(answer, folder, tmp_path):
    """Every file is older than what is deleted when something new is kept."""
    home = folder.parent
    for name in FOREIGN:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(name)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "photo.png").write_text("one")
    (folder / f"{OLD}").symlink_to(elsewhere)
    (home / "memory" / f"{OLD}.json").symlink_to(elsewhere / "photo.png")
    (home / "plans" / f"{NEW}.json").symlink_to(tmp_path / "nowhere")
    for path in (*home.rglob("*"), elsewhere):
        if path.exists():
            os.utime(path, (time.time() - 90 * 86400,) * 2)
    before = snapshot(home)
    listed = json.loads(answer("cache", "--json")[1])
    assert listed["entries"] == [] and not any(
        listed[kind]["count"] for kind in ("measurements", "base_figures", "plans")
    )
    assert keep_rows().origin.state == "made"  # deletes what is old
    keep_measured(NEW, MemoryReport(source="measured", device="cpu", peak_bytes=7))
    code, out, errors = answer("cache", "--clear")
    assert (code, errors) == (0, "") and "in 1 entry; deleted" in out and "in 1 memory measurement; deleted" in out
    assert snapshot(home) == before and (elsewhere / "photo.png").read_text() == "one"


def test_what_killed_writers_left_is_deleted_and_what_is_being_written_is_not(answer, folder):
    for key in (OLD, NEW):
        (folder / "building" / f"{key}-abcd_123").mkdir(parents=True)
        (folder / "building" / f"{key}-abcd_123" / "rows").write_text("12345")
    with TokenStore().locked(NEW):
        assert json.loads(answer("cache", "--json")[1])["unfinished"] == {"bytes": 5, "count": 1}
        assert "of writers that were killed: 5 B in 1 folder; deleted" in answer("cache", "--clear")[1]
        assert [path.name for path in (folder / "building").iterdir()] == [f"{NEW}-abcd_123"]
    answer("cache", "--clear")
    assert not list((folder / "building").iterdir())


def test_a_run_that_has_mapped_tokens_keeps_them_when_the_cache_is_deleted(answer, folder):
    kept, plain = keep_rows(), keep_rows()
    rows = [list(row.input_ids) for row in plain.dataset.train]
    answer("cache", "--clear")
    assert plain.origin.state == "read" and [list(row.input_ids) for row in kept.dataset.train] == rows
    assert keep_rows().origin.state == "made"


def test_one_file_that_cannot_be_deleted_is_named_and_the_others_are_gone(answer, folder, monkeypatch):
    for name in (OLD, NEW):
        keep_measured(name, MemoryReport(source="measured", device="cpu", peak_bytes=7))
    real = Path.unlink

    def unlink(path, **options):
        if path.name.startswith(OLD):
            raise PermissionError(errno.EPERM, "Operation not permitted")
        real(path, **options)

    monkeypatch.setattr(Path, "unlink", unlink)
    code, _, errors = answer("cache", "--clear")
    assert code == 8 and f"{OLD}.json: cannot be deleted: Operation not permitted" in errors
    assert [path.name for path in (folder.parent / "memory").iterdir()] == [f"{OLD}.json"]


def test_the_cache_is_listed_without_torch():
    code = "import sys, peftlab.runs.cache; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
