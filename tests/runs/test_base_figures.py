"""A base is evaluated once for all runs that begin with the same evaluation, and again where anything differs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from peftlab.recipe.schema import Recipe
from peftlab.runs.base_figures import open_base_figures
from peftlab.runs.bench import Bench, prepare
from peftlab.runs.display import NoDisplay
from peftlab.runs.run import train
from peftlab.runs.scores import read_stored
from peftlab.world.open import open_world
from tests.runs.recipes import shallow_sections

NOTE = "the base's figures are those of an earlier run with the same base, rows and settings"
ENVIRONMENT = {
    "python": "3", "platform": "Linux", "versions": {"peftlab": "1"}, "commit": "0123abcd", "device": "cpu",
    "repeatable": False, "threads": 1,
}  # fmt: skip


def make_recipe(folder, method: str = "bitfit", **changes) -> Recipe:
    sections = shallow_sections(method, folder, steps=1)
    sections["data"]["evaluation_rows"] = 4
    sections["evaluation"] = {"metrics": ["loss", "exact_match"], "generation": {"examples": 1, "max_new_tokens": 2}}
    for section, values in changes.items():
        sections[section] = sections[section] | values
    return Recipe.model_validate(sections)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("PEFTLAB_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def bench(cache, tmp_path_factory):
    return prepare(make_recipe(tmp_path_factory.mktemp("bench")), open_world("cpu"))


def test_another_method_of_the_same_base_has_its_figures_without_an_evaluation(cache, tmp_path, monkeypatch):
    monkeypatch.setattr("peftlab.runs.environment.source_commit", lambda: "0123abcd")
    evaluated, evaluate = [], Bench.evaluate

    def counting(bench, model, part="evaluation"):
        evaluated.append(part)
        return evaluate(bench, model, part)

    monkeypatch.setattr(Bench, "evaluate", counting)
    first, second = (
        train(make_recipe(tmp_path / method, method), display=NoDisplay()) for method in ("bitfit", "adapters")
    )
    assert len(evaluated) == 3 * 3, "each part before and after, and after alone"
    assert NOTE in second.notes and NOTE not in first.notes
    assert second.metrics["before"] == first.metrics["before"] and second.signatures == first.signatures
    assert [one["before"] for one in second.examples] == [one["before"] for one in first.examples]
    stored = [read_stored(tmp_path / method / "scores.json") for method in ("bitfit", "adapters")]
    before = [name for name in stored[0] if "before" in name]
    assert len(before) == 2 and [stored[1][name] for name in before] == [stored[0][name] for name in before]
    lines = [json.loads(line) for line in (tmp_path / "adapters" / "metrics.jsonl").read_text().splitlines()]
    logged = [line["loss"] for line in lines if line["event"] == "evaluation"]
    assert logged[0] == first.metrics["before"]["loss"]


def path_of(bench: Bench, **environment) -> str:
    return str(open_base_figures(bench, ENVIRONMENT | environment).path)


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluation": {"batch_size": 1}},
        {"evaluation": {"metrics": ("loss", "perplexity")}},
        {"training": {"speed": {"packing": "off"}}},
        {"training": {"precision": "bfloat16"}},
        {"model": {"attention": "eager"}},
        {"method": {"type": "qlora", "rank": 4}},
        {"method": {"type": "prefix", "length": 4}},  # prompts are treated otherwise
    ],
)
def test_what_changes_a_figure_has_another_name(bench, tmp_path, changes):
    sections = make_recipe(tmp_path).model_dump(mode="json")
    method = changes.pop("method", sections["method"])
    for section, values in changes.items():
        sections[section] |= values
    other = replace(bench, recipe=Recipe.model_validate_json(json.dumps(sections | {"method": method})))
    assert path_of(other) != path_of(bench)


def test_other_rows_another_base_and_other_software_have_another_name(bench):
    rows = replace(bench.dataset, evaluation=list(bench.dataset.evaluation)[:3])
    prompts = replace(bench.dataset, prompts=[replace(one, references=("x",)) for one in bench.dataset.prompts])
    base = replace(bench.base, source=bench.base.source | {"fingerprint": "another"})
    others = [replace(bench, dataset=rows), replace(bench, dataset=prompts), replace(bench, base=base)]
    paths = {path_of(bench), *map(path_of, others), path_of(bench, commit="4567"), path_of(bench, threads=2)}
    assert len(paths) == 6


def test_what_training_sets_leaves_the_name(bench, tmp_path):
    other = make_recipe(tmp_path, "adapters", training={"learning_rate": 0.5, "steps": 9}, run={"seed": 7})
    assert path_of(replace(bench, recipe=other)) == path_of(bench)


def test_code_or_a_base_that_nothing_identifies_is_not_kept(bench):
    assert open_base_figures(bench, ENVIRONMENT | {"commit": "0123abcd with changes"}).path is None
    unknown = replace(bench.base, source=bench.base.source | {"fingerprint": None})
    assert open_base_figures(replace(bench, base=unknown), ENVIRONMENT).path is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"parts": {"evaluation": {}}, "examples": []}', '{"parts": 1}'])
def test_a_damaged_file_is_measured_anew(bench, text):
    path = open_base_figures(bench, ENVIRONMENT).path
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    figures = open_base_figures(bench, ENVIRONMENT)
    assert not figures.found and not figures.parts
    figures.keep()
    assert open_base_figures(bench, ENVIRONMENT).found
