"""Every recipe, command and Python name that the README and the pages show works as shown."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
import typer
from ruamel.yaml import YAML

from peftlab.cli.app import app
from peftlab.methods import METHODS
from peftlab.recipe import Recipe, parse_recipe
from peftlab.recipe.comparison import load_comparison
from peftlab.recipe.field_search import find_fields
from peftlab.recipe.space import find_faults, parse_dimension
from peftlab.shapes import ModelShape, ParameterSite

from .pages import REPOSITORY, blocks

# What a snippet that shows a part of a recipe leaves out.
REST = {
    "model": "{name: builtin:tiny}",
    "method": "{type: lora}",
    "data": "{train: rows.jsonl}",
    "training": "{steps: 10, learning_rate: 1e-3}",
}
COMPLETE = "\n".join(f"{section}: {value}" for section, value in REST.items())
RECIPES = [block for block in blocks("yaml") if "variants:" not in block.text]
COMPARISONS = [block for block in blocks("yaml") if "variants:" in block.text]
OPERATORS = {">", "|", "&&", ";"}


@pytest.mark.parametrize("block", RECIPES, ids=str)
def test_a_recipe_has_no_problem(block):
    given = YAML(typ="safe").load(block.text)
    rest = [f"{section}: {value}" for section, value in REST.items() if section not in given]
    recipe = parse_recipe("\n".join([block.text, *rest]))
    assert set(given) <= set(type(recipe).model_fields)


@pytest.mark.parametrize("block", COMPARISONS, ids=str)
def test_a_comparison_has_no_problem(block, tmp_path):
    for folder in (REPOSITORY / "recipes").iterdir():
        (tmp_path / folder.name).symlink_to(folder)
    file = tmp_path / "new" / "comparison.yaml"
    file.parent.mkdir()
    file.write_text(block.text, encoding="utf-8")
    comparison, candidates = load_comparison(file)
    assert len(candidates) == len(comparison.variants)


def commands() -> list[tuple[str, list[str]]]:
    """Return (place, arguments) of every `peftlab` command in a code block."""
    found = []
    for block in blocks("bash"):
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            starts = [i for i, word in enumerate(words) if word == "peftlab"]
            if starts:
                ends = [i for i, word in enumerate(words) if word in OPERATORS] or [len(words)]
                found.append((f"{block.page}: {line.strip()}", words[starts[0] + 1 : ends[0]]))
    return found


@pytest.mark.parametrize("arguments", [pytest.param(words, id=place) for place, words in commands()])
def test_a_command_is_known_with_its_options(arguments):
    group = typer.main.get_command(app)
    name, *rest = arguments
    assert name in group.commands
    group.commands[name].make_context(name, rest)  # raises for an unknown option or a missing argument


@pytest.mark.parametrize("arguments", [pytest.param(words, id=place) for place, words in commands()])
def test_what_a_command_names_exists(arguments):
    for before, word in zip(["", *arguments], arguments, strict=False):
        if before == "--search":
            key, dimension = parse_dimension(word)
            assert not list(find_faults(dimension)) and find_fields(key)
        elif word.startswith("recipes/") and "{" not in word:
            assert list(REPOSITORY.glob(word)), word
        elif word.partition(".")[0] in Recipe.model_fields and "=" in word:
            assert parse_recipe(COMPLETE, [word])


def test_files_of_the_repository_that_are_named_exist():
    pattern = re.compile(r"\b(?:scripts|configs|recipes)/[\w./-]*\w")
    for block in blocks("bash"):
        for name in pattern.findall(block.text):
            assert (REPOSITORY / name).exists(), f"{block}: {name}"


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_names_exist(block):
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "peftlab":
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)


def test_the_method_that_the_python_page_registers_can_be_chosen_in_a_recipe():
    (block,) = (block for block in blocks("python") if "@register" in block.text)
    exec(compile(block.text, str(block), "exec", dont_inherit=True), {"__name__": "notebook"})
    try:
        recipe = parse_recipe(COMPLETE, ["method={type: first-layer}"])
        sites = [ParameterSite("h.0.w", (2, 2), "mlp", 0), ParameterSite("h.1.w", (2, 2), "mlp", 1)]
        shape = ModelShape("gpt2", "causal-lm", 2, 2, 2, 8, tuple(sites), ())
        assert recipe.method.trained_base(shape) == {"h.0.w"}
    finally:
        METHODS.remove("first-layer")


def test_an_unknown_option_would_be_seen():
    command = typer.main.get_command(app).commands["train"]
    with pytest.raises(typer.BadParameter.__base__, match="nosuch"):
        command.make_context("train", [str(Path("a.yaml")), "--nosuch"])
