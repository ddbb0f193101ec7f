from __future__ import annotations

import json

import pytest

from peftlab.errors import StorageError
from peftlab.recipe.dump import dump_recipe
from peftlab.recipe.schema import Recipe
from peftlab.runs.compare import compare, unique_names
from tests.runs.recipes import short_recipe, short_sections


def write(folder, name, recipe):
    path = folder / f"{name}.yaml"
    path.write_text(dump_recipe(recipe))
    return path


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A good recipe and one whose rate breaks it, compared: (results, output, recipe files)."""
    folder = tmp_path_factory.mktemp("recipes")
    good = short_sections("bitfit", folder / "unused", steps=2)
    good["run"]["plan"] = "report"
    files = [
        write(folder, "good", Recipe.model_validate(good)),
        write(folder, "bad", short_recipe("full", folder / "unused", learning_rate=1e30, schedule="constant")),
    ]
    return compare(files, [], folder / "out"), folder / "out", files


def test_a_failed_run_is_a_row_that_says_so(compared):
    good, bad = compared[0]
    assert (good.status, bad.status) == ("finished", "diverged")
    assert "step 2: the" in bad.error


def test_the_runs_lie_in_the_output_with_what_they_printed(compared):
    results, output, _ = compared
    assert "not finite" in (output / results[1].name / "log.txt").read_text()
    summary = json.loads((output / "comparison.json").read_text())
    assert [row["status"] for row in summary] == ["finished", "diverged"]
    assert (output / "memory.png").read_bytes().startswith(b"\x89PNG")
    assert set(results[0].memory) == {"predicted", "measured", "process"}


def test_a_comparison_is_not_replaced_unasked(compared):
    with pytest.raises(StorageError, match="already holds 1 of these runs"):
        compare(compared[2], [], compared[1])


def test_recipes_of_one_name_get_numbers(tmp_path):
    twins = [tmp_path / "a" / "lora.yaml", tmp_path / "a" / "lora.yaml", tmp_path / "a" / "full.yaml"]
    assert unique_names(twins) == ["a-lora-1", "a-lora-2", "a-full"]
