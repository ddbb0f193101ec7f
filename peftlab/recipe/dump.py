"""Writing a recipe as YAML with every resolved field, so that the file does not depend on the defaults."""

from __future__ import annotations

from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import SafeRepresenter

from peftlab.recipe.schema import Recipe
from peftlab.recipe.yaml_source import parse_scalar

# Texts that YAML 1.1 readers, PyYAML among them, read as booleans.
OLD_BOOLEANS = {"y", "n", "yes", "no", "on", "off"}


class Representer(SafeRepresenter):
    """Quotes every text that some YAML version could read as another type."""

    def represent_text(self, text: str) -> ScalarNode:
        plain = text.isascii() and text.isprintable() and parse_scalar(text) == text
        plain = plain and text.lower() not in OLD_BOOLEANS
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')

    def represent_nothing(self, _: None) -> ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:null", "null")

    def represent_number(self, number: float) -> ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:float", repr(number))


Representer.add_representer(str, Representer.represent_text)
Representer.add_representer(type(None), Representer.represent_nothing)
Representer.add_representer(float, Representer.represent_number)


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as YAML that loads to an equal recipe."""
    return dump_values(recipe.model_dump())


def dump_values(values: dict[str, Any]) -> str:
    """Return values as YAML, their keys in order and their texts quoted where a reader could take them for others."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # ruamel infers the type of None
    yaml.width = 2**20
    stream = StringIO()
    yaml.dump(as_plain(values), stream)
    return stream.getvalue()


def as_plain(value: Any) -> Any:
    """Return the value with lists for tuples, as YAML has no tuples."""
    if isinstance(value, dict):
        return {key: as_plain(item) for key, item in value.items()}
    return [as_plain(item) for item in value] if isinstance(value, tuple | list) else value
