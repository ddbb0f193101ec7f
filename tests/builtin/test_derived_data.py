"""`builtin:readability` and `builtin:mentions`: made from other shipped data by their script, byte for byte."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path

import pytest

from peftlab.data.splits import load_examples
from peftlab.recipe.schema import Data
from peftlab.tasks import TASKS

REPOSITORY = Path(__file__).resolve().parents[2]
BUILTIN = REPOSITORY / "peftlab" / "builtin"
SOURCES = {"readability": "topics", "mentions": "identifiers"}
FILES = [(name, path.name) for name, source in SOURCES.items() for path in sorted((BUILTIN / source).glob("*.jsonl"))]


@pytest.fixture(scope="module")
def script():
    path = REPOSITORY / "scripts" / "build_derived_data.py"
    spec = importlib.util.spec_from_file_location("build_derived_data", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_of(name: str, file: str) -> list[dict]:
    return [json.loads(line) for line in (BUILTIN / name / file).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("name", "file"), FILES)
def test_the_script_makes_the_shipped_rows(script, name, file):
    splits = script.read(SOURCES[name])
    built = (
        script.build_readability(splits)
        if name == "readability"
        else {split: script.build_mentions(rows) for split, rows in splits.items()}
    )
    assert built[file.removesuffix(".jsonl")] == rows_of(name, file)


@pytest.mark.parametrize(("name", "file"), FILES)
def test_the_readme_names_the_rows_and_the_digest(name, file):
    content = (BUILTIN / name / file).read_bytes()
    line = next(line for line in (BUILTIN / name / "README.md").read_text().splitlines() if f"`{file}`" in line)
    assert f"| {len(rows_of(name, file)):,} |" in line and hashlib.sha256(content).hexdigest() in line


@pytest.mark.parametrize("name", SOURCES)
def test_the_folder_is_small(name):
    assert sum(path.stat().st_size for path in (BUILTIN / name).iterdir()) < 500_000


def test_the_index_is_that_by_hand(script):
    """Six words of 4, 4, 3, 3, 5 and 2 letters in two sentences: 4.71 * 21/6 + 0.5 * 6/2 - 21.43 = -3.445."""
    assert script.readability("Read this. Get the bytes of!") == pytest.approx(-3.445)
    assert script.readability("Too few words here.") is None


@pytest.mark.parametrize(
    ("task", "source", "layout", "rows"),
    [
        ("regression", "builtin:readability", "regression", 1797),
        ("multi-label-classification", "builtin:mentions", "multi-label", 1855),
    ],
)
def test_the_rows_are_those_of_their_task(task, source, layout, rows):
    section = Data.model_validate({"train": f"{source}[train]", "evaluation": f"{source}[test]", "format": layout})
    examples = load_examples(section, TASKS[task], seed=0)
    assert len(examples.train) == rows and len(examples.evaluation) > 400
    assert examples.labels in (["target"], ["exception", "function", "parameter", "type"])
