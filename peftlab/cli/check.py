"""`peftlab check` and `peftlab schema`: the commands that need only the recipe, without torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.cli.answer import answers, problem_json
from peftlab.cli.options import AsJson, Debug, RecipePaths, split_overrides
from peftlab.errors import DataError, MethodError, PeftlabError, Problem, RecipeError, UsageError
from peftlab.files import decode_json
from peftlab.secrets import mask_secrets

if TYPE_CHECKING:
    from peftlab.data.row_reader import Header
    from peftlab.recipe.schema import Recipe


@answers
def check(recipes: RecipePaths, as_json: AsJson = False, debug: Debug = False) -> Any:
    """Check recipes and comparisons, and the columns of data files at hand. Problems have file, line and key."""
    paths, overrides = split_overrides(recipes)
    if not paths:
        raise UsageError("name at least one recipe file to check")
    examined = {path: examine(path, overrides) for path in paths}
    found = {path: problems for path, (problems, _) in examined.items()}
    codes = {code for _, code in examined.values()}
    code = RecipeError.exit_code if RecipeError.exit_code in codes else max(codes)
    good = not code
    answer = {
        "ok": good,
        "recipes": [
            {"path": str(path), "ok": not problems, "problems": [problem_json(problem) for problem in problems]}
            for path, problems in found.items()
        ],
    }
    return answer, lambda: show_problems(found), code


def examine(path: Path, overrides: Sequence[str]) -> tuple[list[Problem], int]:
    """Return the problems of a recipe or a comparison, and the exit code for them; 0 if there are none."""
    from peftlab.recipe.load import check_files, is_comparison, load_recipe

    try:
        if is_comparison(path):
            from peftlab.recipe.comparison import load_comparison

            recipes = [variant.recipe for variant in load_comparison(path, overrides)[1]]
            problems = find_refused_files(recipes, path)
            return problems, RecipeError.exit_code if problems else 0
        recipe = load_recipe(path, overrides)
        problems = check_files(path, overrides)
        problems = problems or [problem_at(path, overrides, *refused) for refused in find_refused_rows(recipe)]
    except RecipeError as error:
        return error.problems, RecipeError.exit_code
    if problems:
        return problems, RecipeError.exit_code
    refusals = find_refusals(recipe, path, overrides)
    return refusals, MethodError.exit_code if refusals else 0


def find_refusals(recipe: Recipe, path: Path, overrides: Sequence[str]) -> list[Problem]:
    """Return what a recipe's method, or a launch's strategy, cannot do on the model of a local `config.json`.

    A type of mixed layers may have models of one kind alone (Granite 4), which are not judged here.
    """
    from peftlab.families import known_refusal
    from peftlab.world.request import TENSOR_SIZE, count, undivided_heads

    config = read_local_config(recipe.model.name)
    if uneven := undivided_heads(config, count(os.environ, TENSOR_SIZE)):
        return [problem_at(path, overrides, "model.name", uneven)]
    kinds = config.get("layer_types")
    if not recipe.method.refused_by_family or (isinstance(kinds, list) and len(set(map(str, kinds))) == 1):
        return []
    refusal = known_refusal(str(config.get("model_type")), recipe.model.task, recipe.method.form)
    if refusal is None:
        return []
    return [problem_at(path, overrides, *refusal)]


def find_refused_files(recipes: Sequence[Recipe], path: Path) -> list[Problem]:
    """Return what is wrong with the columns and rows of files at hand for the variants of a comparison, each once."""
    from peftlab.recipe.headers import find_header_errors
    from peftlab.recipe.yaml_source import dotted

    found = dict[str, Problem]()
    for recipe in recipes:
        columns = [(dotted(key), message) for key, message in find_header_errors(recipe)]
        for key, message in columns or find_refused_rows(recipe):
            found.setdefault(message, Problem(key, message, str(path)))
    return list(found.values())


def find_refused_rows(recipe: Recipe) -> list[tuple[str, str]]:
    """Return (key, message) for what rows of files at hand are refused for when read, as far as a first row shows it.

    Files that are not there or cannot be read are left to the commands that read them whole.
    """
    from peftlab.data.recognise import open_reader, recognise
    from peftlab.data.row_reader import wanted_columns
    from peftlab.recipe.headers import PARTS
    from peftlab.recipe.schema import list_sources

    found, named = dict[str, str](), recipe.data.format
    for part in PARTS:
        for entry in list_sources(getattr(recipe.data, part)):
            header, wanted = read_first_row(entry.source), wanted_columns(recipe.data, entry)
            try:
                if header is not None:
                    choice = recognise(recipe.task.formats, named, header, wanted)
                    open_reader(choice, header, wanted)
                    named = choice.format.name  # the first file decides
            except DataError as error:
                found.setdefault(str(error), f"data.{part}")
    return [(key, message) for message, key in found.items()]


def read_first_row(source: str) -> Header | None:
    """Return what a local file looks like; None for other sources, and where its first rows cannot be read."""
    from peftlab.data.row_reader import Header
    from peftlab.recipe.headers import find_file, has_first_rows
    from peftlab.tables.files import HEADER_ROWS, FilePiece

    file = find_file(source)
    try:
        if file is None or not has_first_rows(file):
            return None
        piece = FilePiece(file)
        first = next((row.cells for row in islice(piece.rows(), HEADER_ROWS) if row.fault is None), None)
        return None if first is None else Header(piece.name, piece.columns(), first)
    except (DataError, OSError, ImportError):
        return None


def problem_at(path: Path, overrides: Sequence[str], key: str, message: str) -> Problem:
    """Return a problem with the place where the recipe sets a key."""
    from peftlab.recipe.load import place_of

    file, _, line = place_of(path, overrides, key).rpartition(":")
    return Problem(key, message, file, int(line)) if line.isdigit() else Problem(key, message, str(path))


def read_local_config(name: str) -> dict[str, Any]:
    """Return the `config.json` of a model in a local folder; empty for any other model."""
    from peftlab.models.reference import resolve

    try:
        folder = resolve(name).folder
        config = decode_json((folder / "config.json").read_bytes()) if folder else {}
    except (PeftlabError, OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def show_problems(found: dict[Path, list[Problem]]) -> None:
    for path, problems in found.items():
        print("\n".join(mask_secrets(str(problem)) for problem in problems) if problems else f"ok  {path}")


@answers
def schema(debug: Debug = False) -> Any:
    """Print the JSON Schema of recipes, for editors."""
    from peftlab.cli.answer import print_json
    from peftlab.recipe.json_schema import editor_schema

    answer = editor_schema()
    return answer, lambda: print_json(answer), 0
