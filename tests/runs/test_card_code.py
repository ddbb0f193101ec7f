"""The code of a model card, run as it is: the model that it loads is the trained one."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from peftlab.export.formats import export
from peftlab.models.reference import resolve
from peftlab.recipe.schema import Recipe
from peftlab.runs.card import write_card
from peftlab.runs.card_code import write_code
from peftlab.runs.directory import RunDirectory
from peftlab.runs.loading import load_trained
from peftlab.runs.merge import MergeOptions
from peftlab.runs.reopen import load_run_recipe, run_labels
from tests.export.test_gguf import trained
from tests.runs.recipes import METHODS, shallow_model

IDS = torch.arange(5, 25)[None]
TOPICS = {"train": "builtin:topics[train]", "evaluation": "builtin:topics[test]", "format": "classification"}
CLASSES = {"model": {"task": "sequence-classification"}, "data": TOPICS}
NEW = {"model": {"add_tokens": ["<facts>", "<end of facts>"]}}
BUILTIN = {"model": {"name": "builtin:tiny"}}


def run_code(card: Path, place: Path, monkeypatch) -> dict[str, Any]:
    """Run the code of a card where its `place` can be found, and return what it named."""
    found = re.search(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    monkeypatch.chdir(place)
    names: dict[str, Any] = {}
    exec(found[1], names)
    return names


def logits_of_run(run: Path, ids: torch.Tensor) -> torch.Tensor:
    directory = RunDirectory.open(run)
    labels = run_labels(directory.weights, directory.read_result())
    with torch.no_grad():
        return (
            load_trained(load_run_recipe(directory), directory.weights, torch.device("cpu"), labels).eval()(ids).logits
        )


@pytest.mark.parametrize(
    ("method", "loads", "sections"),
    [("lora", "peft", NEW), ("lora", "peft", CLASSES), ("lora", "peft", BUILTIN), ("adapters", "peftlab", NEW)],
    ids=["new tokens", "classes", "base in a package", "adapters, new tokens"],
)
def test_the_card_s_code_loads_the_trained_model(method, loads, sections, tmp_path, monkeypatch):
    """What PEFT reads by these lines is compared with the run as peftlab opens it."""
    run = trained(tmp_path, METHODS[method], training={"steps": 2}, **sections)
    directory = RunDirectory.open(run)
    if loads == "peft":
        export(run, tmp_path / "out", "peft", MergeOptions(rows=0))
    else:
        write_card(directory.weights, load_run_recipe(directory), directory, loads=loads, place="weights")
    folder = tmp_path / "out" if loads == "peft" else directory.weights
    names = run_code(folder / "README.md", folder.parent, monkeypatch)
    last = len(names["tokenizer"]) - 1
    ids = torch.cat([IDS, torch.tensor([[last - 1, last]])], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(names["model"].eval()(ids).logits, logits_of_run(run, ids))
    if sections is CLASSES:
        topics = ["concurrency", "files", "internet", "language", "messages", "numbers", "windows"]
        assert names["model"].config.id2label == dict(enumerate(topics))
        assert names["model"].config.label2id == {name: place for place, name in enumerate(topics)}


def test_a_classifier_loaded_by_its_card_reads_a_padded_text_to_its_end(tmp_path, monkeypatch):
    """The base names another padding token than its tokenizer; the oracle is each text alone, without padding."""
    base = shutil.copytree(shallow_model(), tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"pad_token_id": 7}))
    model = CLASSES["model"] | {"name": str(base)}
    run = trained(tmp_path, METHODS["lora"], training={"steps": 2}, model=model, data=TOPICS)
    export(run, tmp_path / "out", "peft", MergeOptions(rows=0))
    names = run_code(tmp_path / "out" / "README.md", tmp_path, monkeypatch)
    model, tokenizer = names["model"].eval(), names["tokenizer"]
    texts = ["Return the path of a file that was opened.", "Sort"]
    padded = tokenizer(texts, padding=True, return_tensors="pt")
    assert (padded["input_ids"] == tokenizer.pad_token_id).any()
    with torch.no_grad():
        alone = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])
        torch.testing.assert_close(model(**padded).logits, alone, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("code"), METHODS["lora"], training={"steps": 1})


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        ({"name": "owner/model", "revision": "abc"}, "from_pretrained('owner/model', revision='abc', dtype='float16')"),
        (
            {"name": "owner/model", "trust_remote_code": True},
            "('owner/model', trust_remote_code=True, dtype='float16')",
        ),
        ({"name": "builtin:tiny"}, "from_pretrained(str(files('peftlab') / 'builtin/tiny'), dtype='float16')"),
        ({"name": "FOLDER/base.gguf"}, "from_pretrained('FOLDER', gguf_file='base.gguf', dtype='float16')"),
    ],
)
def test_the_base_is_named_as_transformers_finds_it(model, wanted, run, tmp_path):
    (tmp_path / "base.gguf").write_bytes(b"GGUF")
    name = model["name"].replace("FOLDER", str(tmp_path))
    recipe = load_run_recipe(RunDirectory.open(run))
    recipe = Recipe.model_validate(recipe.model_dump(mode="json") | {"model": model | {"name": name}})
    assert resolve(name).label == name
    code = write_code(recipe, run / "weights", "peft", "REPO", "", "float16")
    assert wanted.replace("FOLDER", str(tmp_path)) in code
    compile(code, "card", "exec")
