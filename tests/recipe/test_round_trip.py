"""A recipe that is written loads back equal, and a damaged one is never more than a RecipeError."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from peftlab.errors import RecipeError
from peftlab.methods import METHODS
from peftlab.recipe import Recipe, dump_recipe, parse_recipe, recipe_name

from .texts import VALID

PATIENT = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12)
TEXT |= st.sampled_from(
    [
        "no",
        "null",
        "~",
        "1e-4",
        "0x1",
        "true",
        "- a",
        "a: b",
        "#",
        " x ",
        "'",
        '"',
        "{mr}",
        "2024-01-01",
        "1:30",
    ]
)
POSITIVE = st.integers(1, 10**9)
SMALL = st.floats(1e-12, 1e6)
METHOD = st.one_of(
    st.fixed_dictionaries({"type": st.sampled_from(sorted(METHODS))}),
    st.fixed_dictionaries(
        {"type": st.just("lora"), "rank": POSITIVE, "alpha": SMALL},
        optional={"targets": st.lists(TEXT.filter(str.strip), min_size=1, max_size=3).map(tuple)},
    ),
    st.fixed_dictionaries({"type": st.just("adapters"), "reduction_factor": SMALL}),
)
RECIPES = st.fixed_dictionaries(
    {
        "model": st.fixed_dictionaries({"name": TEXT}, optional={"revision": TEXT | st.none()}),
        "method": METHOD,
        "data": st.fixed_dictionaries(
            {"train": TEXT, "evaluation": TEXT | POSITIVE | st.floats(1e-9, 0.999)},
            optional={"columns": st.fixed_dictionaries({"completion": TEXT})},
        ),
        "training": st.fixed_dictionaries(
            {"learning_rate": SMALL, "epochs": SMALL},
            optional={"warmup": st.integers(0, 9) | st.floats(0, 0.99), "clip": SMALL | st.none()},
        ),
    },
    optional={"run": st.fixed_dictionaries({"output": TEXT, "trackers": st.lists(TEXT, max_size=2).map(tuple)})},
)


@PATIENT
@given(RECIPES)
def test_a_dumped_recipe_loads_back_equal(values):
    recipe = Recipe.model_validate(values, strict=True)
    assert parse_recipe(dump_recipe(recipe)) == recipe


def test_a_dumped_recipe_names_every_field():
    recipe = parse_recipe(VALID)
    text = dump_recipe(recipe)
    for section in Recipe.model_fields:
        for name, field in type(getattr(recipe, section)).model_fields.items():
            assert f"\n  {field.alias or name}:" in text
    assert "revision: null" in text


PIECES = [
    *(
        "\t",
        "\n",
        ":",
        ": ",
        "- ",
        "*a",
        "&a ",
        "!!int ",
        "{",
        "}",
        "[",
        "]",
        "'",
        '"',
        "|\n",
        ">\n",
        "#",
        "%",
        "@",
    ),
    *(
        "null",
        "1e400",
        ".nan",
        "-1",
        "0",
        "true",
        "\x00",
        "\x85",
        "é",
        "\ud800",
        "<<: ",
        "? ",
        "---\n",
        "9" * 50,
    ),
    *("type: prefix", "model:", "training:\n"),
]


def mutate(text: str, seed: int) -> str:
    """Return the text with a few random cuts, copies and insertions."""
    chance = random.Random(seed)
    for _ in range(chance.randint(1, 4)):
        at, length = chance.randrange(len(text) + 1), chance.randint(0, 12)
        piece = chance.choice([chance.choice(PIECES), text[at : at + length], ""])
        where = chance.randrange(len(text) + 1)
        text = text[:where] + piece + text[where + chance.choice([0, 0, length]) :]
    return text


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 2**64))
def test_a_damaged_recipe_is_a_recipe_or_a_recipe_error(seed):
    try:
        parse_recipe(mutate(VALID, seed), file="r.yaml")
    except RecipeError as error:
        assert error.problems
        assert all(problem.file == "r.yaml" and "\n" not in str(problem) for problem in error.problems)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2).map(tuple) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
FIELDS = "name type rank train columns steps warmup metrics generation trackers targets evaluation epochs bogus".split()
PATHS = [(section, field) for section in Recipe.model_fields for field in FIELDS]
PATHS += [(section,) for section in Recipe.model_fields]


@PATIENT
@example([(("data", "evaluation"), ("",))])
@given(st.lists(st.tuples(st.sampled_from(PATHS), JUNK), min_size=1, max_size=4))
def test_wrong_values_anywhere_are_a_recipe_error(changes):
    from peftlab.recipe.load import Draft, check_values
    from peftlab.recipe.yaml_source import parse_yaml

    values = parse_yaml(VALID, None).value
    for path, value in changes:
        section = values.get(path[0])
        if len(path) == 1 or not isinstance(section, dict):
            values[path[0]] = value
        else:
            section[path[1]] = value
    recipe, problems = check_values(Draft(values, "r.yaml"))
    assert isinstance(recipe, Recipe)
    assert all("\n" not in str(problem) for problem in problems)


@pytest.mark.parametrize(
    ("path", "name"),
    [("recipes/tiny/lora.yaml", "tiny-lora"), ("/x.yaml", "x"), ("a/b.c/d.e.yaml", "b.c-d.e")],
)
def test_a_run_is_named_after_the_folder_and_the_file(path, name):
    assert recipe_name(path) == name
