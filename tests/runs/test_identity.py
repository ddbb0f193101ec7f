"""What may change when a run resumes, what is refused, and what makes it inexact."""

from __future__ import annotations

import copy

import pytest

from peftlab.errors import StorageError
from peftlab.recipe import schema
from peftlab.runs.identity import FREE_OF_RUN, refuse_changed_recipe, refuse_changes, why_inexact
from tests.runs.recipes import short_recipe


@pytest.fixture(scope="module")
def identity():
    return {
        "recipe": short_recipe("lora", "run").model_dump(mode="json"),
        "data": {"train": "a", "evaluation": "b"},
        "base": {"name": "x", "revision": None, "fingerprint": "sha256:1", "quantization": None},
        "frozen": "f" * 64,
        "environment": {"python": "3", "versions": {"torch": "2"}, "device": "cpu", "threads": 1, "processes": 1},
    }


def changed(identity, path, value):
    other = copy.deepcopy(identity)
    *sections, key = path.split(".")
    place = other
    for section in sections:
        place = place[section]
    assert place[key] != value
    place[key] = value
    return other


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("recipe.run.seed", 1),
        ("recipe.model.dtype", "bfloat16"),
        ("recipe.method.rank", 5),
        ("recipe.data.max_length", 7),
        ("recipe.training.batch_size", 5),
        ("data.train", "c"),
        ("data.evaluation", None),
        ("base.fingerprint", "sha256:2"),
        ("base.revision", "0123"),
        ("base.quantization", "nf4"),
    ],
)
def test_what_the_trained_bytes_depend_on_is_refused_with_its_key_and_both_values(identity, path, value):
    other = changed(identity, path, value)
    with pytest.raises(StorageError) as caught:
        refuse_changes(identity, other)
    part, _, key = path.partition(".")
    message = str(caught.value)
    assert f"{key if part == 'recipe' else f'{part} {key}'}: " in message and f"-> {value!r}" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("recipe.training.steps", 60),
        ("recipe.evaluation.every", 2),
        ("recipe.run.output", "elsewhere"),
        ("recipe.run.save_every", 9),
        ("recipe.run.log_every", 9),
        ("recipe.run.trackers", ["wandb"]),
        ("recipe.run.max_seconds", 9.0),
    ],
)
def test_more_steps_logging_and_saving_may_change(identity, path, value):
    refuse_changes(identity, changed(identity, path, value))


def test_every_field_of_run_but_the_seed_and_the_choice_of_weights_is_free_to_change():
    """A new field must be assigned to one side or the other."""
    assert {*FREE_OF_RUN, "seed", "keep"} == set(schema.Run.model_fields)


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("environment.versions.torch", "3", "versions.torch: 2 -> 3"),
        ("environment.device", "H100", "device: cpu -> H100"),
        ("environment.threads", 2, "threads: 1 -> 2"),
        ("environment.processes", 2, "processes: 1 -> 2; rows of a step: 4 -> 8"),
        ("environment.python", "4", "python: 3 -> 4"),
        ("recipe.training.steps", 60, "training.steps: 6 -> 60"),
    ],
)
def test_what_may_change_the_bytes_is_reported_as_inexact(identity, path, value, reason):
    other = changed(identity, path, value)
    refuse_changes(identity, other)
    assert why_inexact(identity, other) == reason.split("; ")
    assert why_inexact(identity, identity) == []


def test_a_step_that_was_chosen_by_other_measures_is_reported_as_inexact(identity):
    chosen = changed(changed(identity, "recipe.run.keep", "best"), "recipe.evaluation.best", "exact_match")
    other = changed(chosen, "recipe.evaluation.texts.extract", "[0-9]+")
    assert why_inexact(chosen, other) == ["evaluation.texts.extract: None -> [0-9]+"]
    shown = changed(chosen, "recipe.evaluation.generation.examples", 9)
    assert why_inexact(chosen, shown) == []
    last = changed(identity, "recipe.evaluation.texts.extract", "[0-9]+")
    assert why_inexact(identity, last) == [], "the last step is kept, whatever is measured"


def test_other_frozen_bytes_are_another_base_unless_other_versions_made_them(identity):
    other = changed(identity, "frozen", "0" * 64)
    with pytest.raises(StorageError, match="base weights: 'sha256 ffffffffffff' -> 'sha256 000000000000'"):
        refuse_changes(identity, other)
    elsewhere = changed(other, "environment.versions.torch", "3")
    refuse_changes(identity, elsewhere)
    assert "the frozen weights have other bytes" in why_inexact(identity, elsewhere)


def test_a_recipe_is_compared_alone_where_nothing_is_loaded(identity):
    recipe = identity["recipe"]
    refuse_changed_recipe(recipe, recipe)
    with pytest.raises(StorageError, match="run.seed: 0 -> 1"):
        refuse_changed_recipe(recipe, recipe | {"run": recipe["run"] | {"seed": 1}})


def test_another_strategy_makes_a_resumed_run_inexact_and_none_is_what_the_processes_say(identity):
    fsdp2 = copy.deepcopy(identity)
    fsdp2["environment"]["strategy"] = "fsdp2"
    single = changed(fsdp2, "environment.strategy", "single")
    assert why_inexact(fsdp2, identity) == why_inexact(fsdp2, single) == ["strategy: fsdp2 -> single"]
    assert why_inexact(identity, single) == why_inexact(fsdp2, fsdp2) == []


def test_a_step_may_be_split_in_another_way_where_other_processes_share_the_same_rows(identity):
    """Two micro-batches of two rows in one process are one in each of two."""
    training = identity["recipe"]["training"]
    assert (training["batch_size"], training["gradient_accumulation"]) == (4, 1)
    halved = changed(identity, "recipe.training.batch_size", 2)
    shared = changed(halved, "environment.processes", 2)
    refuse_changes(identity, shared)
    assert why_inexact(identity, shared) == ["processes: 1 -> 2", "training.batch_size: 4 -> 2"]
    for other in (halved, changed(changed(identity, "recipe.training.batch_size", 3), "environment.processes", 2)):
        with pytest.raises(StorageError, match=r"training\.batch_size: 4 -> "):
            refuse_changes(identity, other)
    tensor = changed(identity, "environment.processes", 2)
    tensor["environment"]["strategy"] = "tensor"
    assert not any("rows of a step" in reason for reason in why_inexact(identity, tensor))
