"""A comparison's file: variants become recipes, and every mistake is one line with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftlab.errors import RecipeError
from peftlab.recipe.comparison import load_comparison
from peftlab.recipe.load import is_comparison

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "tiny"
TEXT = """base: BASE
overrides:
  training.steps: 7
variants:
  small: {overrides: {method.rank: 2}}
  other: {recipe: OTHER}
  inline: {method: {type: prefix, length: 3}, overrides: {method.length: 5}}
budgets: [trainable=1%]
seeds: 2
rates: [1e-4, 3e-4]
"""


def write(folder: Path, text: str = TEXT) -> Path:
    path = folder / "c.yaml"
    path.write_text(text.replace("BASE", str(RECIPES / "lora.yaml")).replace("OTHER", str(RECIPES / "bitfit.yaml")))
    return path


def test_variants_start_from_the_base_or_from_their_own_recipe(tmp_path):
    comparison, candidates = load_comparison(write(tmp_path), ["data.max_length=99"])
    methods = {one.name: one.recipe.method for one in candidates}
    assert (methods["small"].rank, methods["other"].type, methods["inline"].length) == (2, "bitfit", 5)
    assert {(one.recipe.training.steps, one.recipe.data.max_length) for one in candidates} == {(7, 99)}
    assert (comparison.seeds, comparison.budgets, comparison.rates) == (2, ("trainable=1%",), (1e-4, 3e-4))


def test_a_comparison_is_distinguished_from_a_recipe(tmp_path):
    assert is_comparison(write(tmp_path))
    assert not is_comparison(RECIPES / "lora.yaml") and not is_comparison(tmp_path / "missing.yaml")


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("seeds: 2", "sedes: 2", "9: sedes: unknown key; did you mean 'seeds'?"),
        ("seeds: 2", "seeds: [1, 1]", "9: seeds: there must be at least one seed, and each once"),
        ("seeds: 2", "seeds: []", "9: seeds: there must be at least one seed"),
        ("seeds: 2", "seeds: 0", "9: seeds: must be a whole number of at least 1 or a list, each a whole number"),
        ("rates: [1e-4, 3e-4]", "rates: [1e-4, -1]", "10: rates[1]: must be a number greater than 0, got -1"),
        ("rank: 2", "rnak: 2", "5: variants.small.overrides.method.rnak: unknown key; did you mean 'rank'?"),
        ("rank: 2", "rank: 0", "5: variants.small.overrides.method.rank: must be a whole number of at least 1, "),
        ("steps: 7", "steps: 0", "3: overrides.training.steps: must be a whole number of at least 1 or null, got 0"),
        ("length: 3}", "lenght: 3}", "7: variants.inline.method.lenght: unknown key; did you mean 'length'?"),
        ("{recipe: OTHER}", "{recipes: OTHER}", "6: variants.other.recipes: unknown key; did you mean 'recipe'?"),
        ("{recipe: OTHER}", "{recipe: none.yaml}", "6: variants.other.recipe: FOLDER/none.yaml: no such file"),
        ("base: BASE", "base: none.yaml", "1: base: FOLDER/none.yaml: no such file"),
        ("type: prefix", "type: prefixes", "7: variants.inline.method.type: must be one of full, lora, qlora"),
        (
            "{method.rank: 2}",
            "{method: {rank: 0}}",
            "5: variants.small.overrides.method.type: is required: one of full",
        ),
        ("budgets: [trainable=1%]", "budgets:\n- trainable=1%\n- memory=8", "10: budgets[1]: memory '8' has no unit"),
        ("budgets: [trainable=1%]", "budgets: [trainable=x]", "8: budgets[0]: trainable 'x' is not a valid amount"),
        (
            "budgets: [trainable=1%]",
            "budgets: trainable=1%",
            "8: budgets: must be a list, each text, got 'trainable=1%'",
        ),
        ("budgets: [trainable=1%]", "frontier: trainable=1k", "8: frontier: 'trainable=1k' is not a valid frontier; "),
        ("budgets: [trainable=1%]", "frontier: trainable=9..5", "8: frontier: 'trainable=9..5' must go from a smaller"),
        ("budgets: [trainable=1%]", "frontier: trainble=1..2", "8: frontier: unknown budget 'trainble'; did you mean"),
        ("seeds: 2", "frontier: trainable=1k..2k", "9: frontier: is in place of `budgets`; give one of them"),
        ("seeds: 2", "metric: los", "9: metric: must be one of loss, "),
        ("seeds: 2", "rate_factors: []", "9: rate_factors: is empty; give at least one"),
        ("seeds: 2", "search:\n  trails: 3", "9: search.space: is required: a mapping of names to"),
        ("seeds: 2", "search: {space: {}, trails: 3}", "9: search.trails: unknown key; did you mean 'trials'?"),
        (
            "seeds: 2",
            "search:\n  space:\n    method.rank: {low: 1, high: a}",
            "11: search.space.method.rank.high: must be a whole number or a number, got 'a'",
        ),
        ("overrides:\n  training.steps: 7", "overrides: [1]", "2: overrides: must be a mapping of keys to values"),
    ],
)
def test_each_fault_is_one_line_with_its_place(tmp_path, old, new, line):
    path = write(tmp_path, TEXT.replace(old, new))
    with pytest.raises(RecipeError) as caught:
        load_comparison(path)
    assert str(caught.value).splitlines()[0].startswith(f"{path}:{line.replace('FOLDER', str(tmp_path))}")


@pytest.mark.parametrize("wrong", ["search: {space: {method.rank: {low: 1, high: a}}}", "rates: [1, a]"])
def test_a_value_inside_a_list_or_a_section_is_one_problem(tmp_path, wrong):
    with pytest.raises(RecipeError) as caught:
        load_comparison(write(tmp_path, TEXT.replace("rates: [1e-4, 3e-4]", wrong)))
    assert len(caught.value.problems) == 1


def test_a_frontier_and_a_metric_of_a_file_are_read(tmp_path):
    text = TEXT.replace("budgets: [trainable=1%]", "frontier: trainable=1k..4k:3\nmetric: f1")
    comparison, _ = load_comparison(write(tmp_path, text))
    assert (comparison.frontier, comparison.metric) == ("trainable=1k..4k:3", "f1_macro")


def test_a_comparison_without_variants_or_recipe_says_so(tmp_path):
    for text, words in (
        ("- a", "is not a mapping"),
        ("base: BASE", "variants: is required: a mapping of names"),
        ("variants: {a: {}}", "variants.a: has no recipe, and the comparison has no base"),
    ):
        with pytest.raises(RecipeError, match=words):
            load_comparison(write(tmp_path, text))


def test_a_variant_with_the_bases_learning_rate_and_another_method_has_that_methods_rule(tmp_path):
    """With alpha 32 LoRA's is ten times that of full fine-tuning, at every rank; a step moves h by alpha."""
    path = tmp_path / "c.yaml"
    path.write_text(f"""base: {RECIPES / "full.yaml"}
overrides: {{training.learning_rate: 1e-4}}
variants:
  full: {{}}
  lora: {{method: {{type: lora, rank: 64, alpha: 32}}}}
  half: {{method: {{type: qlora, rank: 2, alpha: 16}}}}
  stable: {{method: {{type: lora, rank: 4, alpha: 16, rslora: true}}}}
  own: {{method: {{type: lora}}, overrides: {{training.learning_rate: 3e-4}}}}
  started: {{method: {{type: lora, init: pissa}}}}
  unknown: {{method: {{type: bitfit}}}}
""")
    suggested = {one.name: one.suggested_learning_rate for one in load_comparison(path)[1]}
    assert suggested == {
        "full": None, "lora": 1e-3, "half": 2e-3, "stable": 1e-3, "own": None, "started": None, "unknown": None,
    }  # fmt: skip
