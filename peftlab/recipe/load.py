"""Loading a recipe: YAML, overrides, schema and cross-field checks; all problems are reported at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from peftlab.errors import Problem, RecipeError
from peftlab.methods.registry import BUILT_IN
from peftlab.optimizers import expand_short_name
from peftlab.recipe.checks import find_contradictions
from peftlab.recipe.headers import find_header_errors
from peftlab.recipe.limits import find_limit_errors
from peftlab.recipe.overrides import COMMAND_LINE, apply_overrides
from peftlab.recipe.schema import Recipe
from peftlab.recipe.schema_errors import find_schema_errors
from peftlab.recipe.yaml_source import KeyPath, dotted, fatal, parse_yaml, read_text
from peftlab.tasks import TASKS

# Used in place of required values that are missing or wrong, so that the rest can still be checked.
PLACEHOLDERS: dict[str, dict[str, Any]] = {
    "model": {"name": "-"},
    "method": {"type": BUILT_IN[0].model_fields["type"].default},
    "data": {"train": "-"},
    "training": {"learning_rate": 1.0},
}


@dataclass
class Draft:
    """The values of a recipe before they are checked, and the place of each."""

    values: dict[str, Any]
    file: str | None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    overridden: set[KeyPath] = field(default_factory=set)

    def problem(self, path: KeyPath, message: str) -> Problem:
        """Return a problem at `path`, with the line of its nearest known parent.

        An override of a section replaces all that the file has in it.
        """
        if any(path[:length] in self.overridden for length in range(1, len(path) + 1)):
            return Problem(dotted(path), message, COMMAND_LINE)
        for length in range(len(path), -1, -1):
            if path[:length] in self.lines:
                return Problem(dotted(path), message, self.file, self.lines[path[:length]])
        return Problem(dotted(path), message, self.file)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a YAML file with `key.path=value` overrides.

    Raises RecipeError with every problem of the file and of the overrides.
    """
    return parse_recipe(read_text(Path(path)), overrides, file=str(path))


def is_comparison(path: Path) -> bool:
    """Whether a YAML file is a comparison and not a recipe: it has `variants`."""
    try:
        value = parse_yaml(read_text(path), str(path)).value
    except RecipeError:
        return False
    return isinstance(value, dict) and "variants" in value


def parse_recipe(text: str, overrides: Sequence[str] = (), file: str | None = None) -> Recipe:
    """Return the recipe of a YAML text; `file` is the name that problems show."""
    source = parse_yaml(text, file)
    if source.value is None:
        raise fatal("is empty; a recipe has the sections model, method, data and training", file)
    if not isinstance(source.value, dict):
        raise fatal("is not a mapping; a recipe starts with sections such as `model:`", file, source.lines[()])
    overridden, problems = apply_overrides(source.value, overrides)
    draft = Draft(source.value, file, source.lines, overridden)
    recipe, found = check_values(draft)
    if problems := [*source.problems, *problems, *found]:
        raise RecipeError(sorted(problems, key=lambda problem: (problem.file == COMMAND_LINE, problem.line or 0)))
    return recipe


def check_files(path: str | Path, overrides: Sequence[str] = ()) -> list[Problem]:
    """Return a problem for every column that a right recipe needs and a data file at hand does not have.

    And one for weights to start from that are not there.
    """
    source = parse_yaml(read_text(Path(path)), str(path))
    if not isinstance(source.value, dict):
        return []
    overridden, _ = apply_overrides(source.value, overrides)
    draft = Draft(source.value, str(path), source.lines, overridden)
    recipe, _ = check_values(draft)
    found = [*find_header_errors(recipe), *find_start_errors(recipe)]
    return [draft.problem(key, message) for key, message in found]


def find_start_errors(recipe: Recipe) -> list[tuple[KeyPath, str]]:
    """Return the problem of weights to start from that do not exist. A finished run may have lost them."""
    wanted = recipe.method.from_
    if wanted is None or Path(wanted).expanduser().is_dir():
        return []
    return [(("method", "from"), f"{wanted!r} is not a folder; name a run, or a folder of PEFT or transformers")]


def model_recipe(model: str, overrides: Sequence[str]) -> Recipe:
    """Return the recipe of a model with overrides, which name its method, for counting and planning: without data.

    Raises RecipeError.
    """
    values: dict[str, Any] = {section: dict(required) for section, required in PLACEHOLDERS.items()}
    values |= {"model": {"name": model}, "method": {}}
    values["training"] |= {"steps": 1}
    overridden, problems = apply_overrides(values, overrides)
    if not values.get("method"):
        raise fatal(f"{model}: name a method too, as in method.type=lora", None)
    task = values["model"].get("task") if isinstance(values["model"], dict) else None
    if task in TASKS and isinstance(values["data"], dict):
        values["data"].setdefault("format", TASKS[task].formats[0].name)
    recipe, found = check_values(Draft(values, None, {}, overridden))
    if problems or found:
        raise RecipeError([*problems, *found])
    return recipe


def is_recipe_file(what: str) -> bool:
    """Return whether an argument names a recipe file rather than a model."""
    return Path(what).suffix.lower() in (".yaml", ".yml") or os.path.isfile(what) and not what.endswith(".gguf")


def place_of(path: str | Path, overrides: Sequence[str], key: str) -> str:
    """Return where a recipe sets `key` (or the section around it): `FILE:LINE` or `command line`."""
    source = parse_yaml(read_text(Path(path)), str(path))
    if not isinstance(source.value, dict):  # a pipe can be read only once
        return str(path)
    overridden, _ = apply_overrides(source.value, overrides)
    problem = Draft(source.value, str(path), source.lines, overridden).problem(tuple(key.split(".")), "")
    return f"{problem.file}:{problem.line}" if problem.line else str(problem.file)


def recipe_name(path: str | Path) -> str:
    """Return the name for runs of a recipe file, from its folder and stem: `tiny-lora` for `recipes/tiny/lora.yaml`."""
    path = Path(path).absolute()
    return f"{path.parent.name}-{path.stem}".lstrip("-")


def check_values(draft: Draft) -> tuple[Recipe, list[Problem]]:
    """Return the recipe, as far as it can be built, and every problem of its values."""
    training = draft.values.get("training")
    if isinstance(training, dict) and "optimizer" in training:
        # Errors name keys of the section that a bare name stands for.
        draft.values["training"] = {**training, "optimizer": expand_short_name(training["optimizer"])}
    try:
        recipe, errors = Recipe.model_validate(draft.values, strict=True), []
    except ValidationError as error:
        errors = find_schema_errors(error, draft.values)
        recipe = Recipe.model_validate(without_errors(draft.values, [path for path, _ in errors]), strict=True)
    wrong = [path for path, _ in errors]
    errors += [*find_contradictions(recipe, wrong), *find_limit_errors(recipe)]
    return recipe, [draft.problem(path, message) for path, message in errors]


def without_errors(values: dict[str, Any], wrong: Sequence[KeyPath]) -> dict[str, Any]:
    """Return the values without those at the paths `wrong`, with placeholders for required ones that are missing."""
    dropped = {tuple(takewhile(lambda part: isinstance(part, str), path)) for path in wrong}
    # Without its type nothing of a section can be checked.
    dropped |= {section for section in (("method",), ("training", "optimizer")) if (*section, "type") in dropped}
    kept = prune(values, dropped, ())
    for section, required in PLACEHOLDERS.items():
        kept[section] = required | kept.get(section, {})
    return kept


def prune(values: dict[str, Any], wrong: set[KeyPath], path: KeyPath) -> dict[str, Any]:
    """Return the values without those at the paths in `wrong`."""
    return {
        key: prune(value, wrong, (*path, key)) if isinstance(value, dict) else value
        for key, value in values.items()
        if (*path, key) not in wrong
    }
