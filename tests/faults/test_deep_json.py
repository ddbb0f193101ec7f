"""JSON that is nested too deeply is damage like any other, whatever reads it: never a RecursionError."""

from __future__ import annotations

import ast
import gzip
import os
import struct
from pathlib import Path

import pytest

from peftlab.checkpoint.lock import RunLock
from peftlab.cli.check import read_local_config
from peftlab.comparison.variants import read_solutions
from peftlab.data.held_out import read_held_out
from peftlab.data.token_store import DamagedEntry, read_entry
from peftlab.errors import DataError, StorageError
from peftlab.export.weights import find_run
from peftlab.models.checkpoint import stored_shapes
from peftlab.models.reference import resolve
from peftlab.recipe.schema import Recipe
from peftlab.runs.predict import open_output
from peftlab.runs.requests import read_chat
from peftlab.tasks.formats import COMPLETION, as_tools
from peftlab.tasks.multi_label import as_labels

DEEP = "[" * 100_000
PACKAGE = Path(__file__).parents[2] / "peftlab"
# These modules read texts that they or a library wrote a moment before.
OWN = {
    "families", "export/peft", "export/gguf_tokenizer", "methods/full", "comparison/proposals", "comparison/points",
    "data/records", "data/cached", "data/fingerprints", "checkpoint/parts",
}  # fmt: skip


@pytest.mark.parametrize("read", [as_tools, as_labels])
def test_a_deep_cell_is_a_value_that_is_refused(read):
    with pytest.raises(ValueError, match="valid JSON"):
        read(DEEP)


def test_a_deep_chat_is_a_file_that_is_refused(tmp_path):
    recipe = Recipe.model_validate(
        {
            "model": {"name": "builtin:tiny"}, "method": {"type": "lora"},
            "data": {"train": "rows.jsonl", "format": "chat"}, "training": {"steps": 1, "learning_rate": 1.0},
        }
    )  # fmt: skip
    (tmp_path / "chat.json").write_text(DEEP)
    with pytest.raises(DataError, match=r"chat\.json: is not valid JSON: it is nested too deeply"):
        read_chat(recipe, tmp_path / "chat.json")


@pytest.mark.parametrize("damage", ["deep", "cut", "bits"])
def test_damaged_held_out_rows_are_named(damage, tmp_path):
    whole = gzip.compress(b'{"prompt": "a", "completion": "b"}\n' * 200)
    content = {"deep": gzip.compress(DEEP.encode()), "cut": whole[:-9], "bits": whole[:30] + b"\xff\xff" + whole[32:]}
    (tmp_path / "test.jsonl.gz").write_bytes(content[damage])
    with pytest.raises(StorageError, match=r"test\.jsonl\.gz: cannot be read"):
        read_held_out(tmp_path, "test", COMPLETION)


def test_what_is_only_kept_to_save_time_is_made_again(tmp_path):
    (tmp_path / "budgets.json").write_text(DEEP)
    assert read_solutions(tmp_path / "budgets.json") == {}
    (tmp_path / "budgets.json").write_text('{"a": {"kind": 3}}')
    assert read_solutions(tmp_path / "budgets.json") == {}
    (tmp_path / "entry.json").write_text(DEEP)
    with pytest.raises(DamagedEntry):
        read_entry(tmp_path)


def test_predictions_that_cannot_be_continued_say_so(tmp_path):
    (tmp_path / "out.jsonl").write_text("")
    (tmp_path / "out.jsonl.progress").write_text(DEEP)
    with pytest.raises(StorageError, match="--overwrite begins again"):
        open_output(tmp_path / "out.jsonl", {}, resume=True, overwrite=False)


def test_what_does_not_say_what_it_is_is_not_known(tmp_path):
    for name in ("merge.json", "config.json"):
        (tmp_path / name).write_text(DEEP)
    assert find_run(str(tmp_path)) is None
    assert read_local_config(str(tmp_path)) == {}
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(DEEP)) + DEEP.encode())
    assert stored_shapes(resolve(str(tmp_path))) is None


def test_a_lock_with_a_deep_text_is_another_process(tmp_path):
    with RunLock(tmp_path / ".lock"):
        descriptor = os.open(tmp_path / ".lock", os.O_RDWR)
        os.pwrite(descriptor, DEEP[:4096].encode(), 0)
        os.close(descriptor)
        with pytest.raises(StorageError, match="another process"), RunLock(tmp_path / ".lock"):
            pass


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_the_json_of_others_is_read_where_depth_is_an_error_of_the_value(path):
    name = path.relative_to(PACKAGE).with_suffix("").as_posix()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = {
        call
        for node in ast.walk(tree)
        if isinstance(node, ast.Try) and any("RecursionError" in ast.dump(one) for one in node.handlers)
        for statement in node.body
        for call in ast.walk(statement)
    }
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "json.loads"]
    assert name in OWN or all(call in guarded for call in calls), "use files.decode_json"
