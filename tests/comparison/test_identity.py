"""The hash of a run: what changes it and what does not, and that runs recorded by an earlier version are found."""

from __future__ import annotations

import json
import shutil
from datetime import date
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
from pydantic import BaseModel
from transformers import AutoTokenizer

from peftlab.comparison import identity, variants
from peftlab.comparison.identity import describe_section, describe_tokens, hash_run
from peftlab.comparison.variants import DAY, Settings, note_differences, open_variants
from peftlab.errors import StorageError
from peftlab.models.reference import resolve
from peftlab.recipe.comparison import Variant
from peftlab.recipe.load import load_recipe

# Of the recipe's values alone, as the version that first recorded runs hashed them.
FIRST_HASHES = {
    "tiny/adapters": "7de0f771a6d1b039",
    "tiny/bitfit": "d9e8721e0f48c28e",
    "tiny/full": "b7ec29518702fee8",
    "tiny/lora": "8c51c47bd4ca9720",
    "tiny/prefix": "3445740ac2271e6d",
    "tiny/qlora": "dcbbeb340c59e0bc",
    "minilm/lora": "e475ad4d0c1fbe42",  # since F1 is that of all classes
}


@pytest.mark.parametrize("name", FIRST_HASHES)
def test_a_recipe_has_the_hash_that_it_was_first_recorded_under(name):
    values = describe_section(load_recipe(f"recipes/{name}.yaml"))
    assert sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16] == FIRST_HASHES[name]


@pytest.mark.parametrize("override", ["run.output=elsewhere", "run.log_every=3", "evaluation.latency=true"])
def test_where_a_run_is_stored_and_how_it_is_watched_does_not_count(override):
    assert hash_run(load_recipe("recipes/tiny/lora.yaml", [override])) == hash_run(
        load_recipe("recipes/tiny/lora.yaml")
    )


@pytest.mark.parametrize("override", ["run.seed=1", "method.rank=4", "evaluation.generation.beams=2"])
def test_what_a_run_computes_counts(override):
    assert hash_run(load_recipe("recipes/tiny/lora.yaml", [override])) != hash_run(
        load_recipe("recipes/tiny/lora.yaml")
    )


def test_a_field_that_came_later_counts_only_where_it_is_not_its_default():
    class Optimizer(BaseModel):
        type: Literal["adamw"] = "adamw"
        eps: float = 1e-8

    class Training(BaseModel):
        steps: int
        optimizer: Optimizer = Optimizer()
        added: int = 3

    assert describe_section(Training(steps=1), "training") == {"steps": 1, "optimizer": "adamw"}
    changed = Training(steps=1, optimizer=Optimizer(eps=1e-6), added=4)
    assert describe_section(changed, "training") == {
        "steps": 1, "optimizer": {"type": "adamw", "eps": 1e-6}, "added": 4,
    }  # fmt: skip


@pytest.fixture
def dated(tmp_path):
    """A recipe on chats whose model's template writes the date, unless an argument gives it."""
    model = tmp_path / "model"
    shutil.copytree(resolve("builtin:tiny").folder, model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = (
        "{{ today if today is defined else strftime_now('%d') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    tokenizer.save_pretrained(model)
    overrides = [f"model.name={model}", "data.format=chat", "data.template=null", "data.columns={}"]
    return "recipes/tiny/lora.yaml", overrides


@pytest.mark.parametrize(("extra", "same"), [((), False), (("data.template_kwargs={today: monday}",), True)])
def test_a_chat_template_that_writes_the_date_makes_another_run_on_another_day(dated, monkeypatch, extra, same):
    path, overrides = dated
    recipe = load_recipe(path, [*overrides, *extra])
    first = hash_run(recipe)
    monkeypatch.setattr(identity, "date", SimpleNamespace(today=lambda: date(1999, 1, 1)))
    assert (hash_run(recipe) == first) == same


def test_a_day_in_the_recipe_is_the_same_run_as_one_without_on_that_day(dated, monkeypatch):
    path, overrides = dated
    fixed = load_recipe(path, [*overrides, "data.date=1999-01-01"])
    today = hash_run(load_recipe(path, overrides))
    assert hash_run(fixed) != today
    monkeypatch.setattr(identity, "date", SimpleNamespace(today=lambda: date(1999, 1, 1)))
    assert hash_run(load_recipe(path, overrides)) == hash_run(fixed)


class Tomorrow(date):
    @classmethod
    def today(cls):
        return cls(2099, 1, 1)


def test_all_trials_of_a_comparison_write_the_day_of_the_first(dated, monkeypatch, tmp_path):
    path, overrides = dated
    folder = tmp_path / "comparison"
    folder.mkdir()
    variant = Variant("a", Path(path), tuple(overrides), load_recipe(path, overrides))
    (begun,) = open_variants([variant], Settings(), "loss", folder)
    assert begun.recipe.data.date == date.today().isoformat()
    assert any(date.today().isoformat() in note for note in note_differences([begun]))
    monkeypatch.setattr(variants, "date", Tomorrow)
    monkeypatch.setattr(identity, "date", SimpleNamespace(today=lambda: date(2099, 1, 1)))
    (resumed,) = open_variants([variant], Settings(), "loss", folder)
    assert hash_run(resumed.recipe) == hash_run(begun.recipe) and resumed.overrides == begun.overrides
    (folder / DAY).write_text("soon")
    with pytest.raises(StorageError, match="date.txt: is not a day"):
        open_variants([variant], Settings(), "loss", folder)


def test_no_day_is_kept_where_no_template_writes_it(tmp_path):
    variant = Variant("a", Path("recipes/tiny/lora.yaml"), (), load_recipe("recipes/tiny/lora.yaml", []))
    (opened,) = open_variants([variant], Settings(), "loss", tmp_path)
    assert opened.recipe.data.date is None and not list(tmp_path.iterdir())


def test_a_tokenizer_of_another_place_counts_by_its_content(tmp_path):
    hashes = set()
    for name in ("one", "two"):
        folder = tmp_path / name
        shutil.copytree(resolve("builtin:tiny").folder, folder)
        (folder / "note.txt").write_text(name)
        hashes.add(str(describe_tokens(load_recipe("recipes/tiny/lora.yaml", [f"model.tokenizer={folder}"]))))
    assert len(hashes) == 2
