"""The JSON Schema that editors use: documented, closed, and fitting the recipes that ship."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftlab.methods import METHODS
from peftlab.optimizers import OPTIMIZERS, SHORT_NAMES
from peftlab.recipe.json_schema import editor_schema
from peftlab.recipe.yaml_source import parse_yaml

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(set(FOLDER.glob("*/*.yaml")) - set(FOLDER.glob("comparisons/*.yaml")))


@pytest.fixture(scope="module")
def schema():
    return editor_schema()


def definitions(schema):
    return {"recipe": schema, **schema["$defs"]}


def test_every_field_is_documented(schema):
    for owner, definition in definitions(schema).items():
        for name, field in definition["properties"].items():
            assert field.get("description"), f"{owner}.{name}"


def test_unknown_keys_are_refused_everywhere(schema):
    assert all(definition["additionalProperties"] is False for definition in definitions(schema).values())


def test_every_method_is_one_alternative_that_names_its_type(schema):
    alternatives = {option["$ref"].rsplit("/", 1)[-1] for option in schema["properties"]["method"]["oneOf"]}
    assert alternatives == {method.__name__ for method in METHODS.values()}
    for name, method in METHODS.items():
        definition = schema["$defs"][method.__name__]
        assert definition["properties"]["type"]["const"] == name
        assert definition["required"] == ["type"]


def test_an_optimizer_is_a_name_or_a_section_whose_type_is_only_needed_if_it_is_not_the_default(schema):
    names, union = schema["$defs"]["Training"]["properties"]["optimizer"]["anyOf"]
    assert names["enum"] == [*OPTIMIZERS, *SHORT_NAMES]
    kinds = [one["$ref"].rsplit("/", 1)[-1] for one in union["oneOf"]]
    assert {kind: schema["$defs"][kind].get("required", []) for kind in kinds} == {
        "AdamW": [],
        "SGD": ["type"],
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_keys_of_every_recipe_are_in_the_schema(path, schema):
    for section, values in parse_yaml(path.read_text(encoding="utf-8"), str(path)).value.items():
        name = METHODS[values["type"]].__name__ if section == "method" else section.capitalize()
        assert set(values) <= set(schema["$defs"][name]["properties"])
