"""Overrides on the command line are checked as the file is."""

from __future__ import annotations

import pytest

from peftlab.errors import RecipeError
from peftlab.recipe import parse_recipe
from peftlab.recipe.comparison import list_variants

from .texts import VALID, only_problem, problems_of


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("method.rank=16", 16),
        ("method.alpha=1e1", 10.0),
        ("method.targets=[q_proj, v_proj]", ("q_proj", "v_proj")),
        ("data.train=other.jsonl[train]", "other.jsonl[train]"),
        ("data.template={mr} -> ", "{mr} -> "),
        ("data.template=Facts: {mr}", "Facts: {mr}"),
        ('data.template="{mr}\\n"', "{mr}\n"),
        ("data.evaluation=0.25", 0.25),
        ("data.evaluation=25", 25),
        ("data.columns.completion=ref", {"completion": "ref"}),
        ("run.output=1e5", "1e5"),
        ("run.output=null", None),
        ("evaluation.texts.extract=####\\s*(.+)", "####\\s*(.+)"),
        ("model.revision=2024", "2024"),
        ("evaluation.generation.beams=4", 4),
        ("training.clip=null", None),
    ],
)
def test_a_value_is_yaml_or_the_text_itself(override, value):
    found = parse_recipe(VALID, [override])
    for part in override.partition("=")[0].split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
        if isinstance(found, dict):
            break
    assert found == value


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("method.rank=0", "command line: method.rank: must be a whole number of at least 1, got 0"),
        ("method.rnak=4", "command line: method.rnak: unknown key; did you mean 'rank'?"),
        ("rank=4", "command line: rank: unknown key; 'rank' belongs under `method`"),
        ("modle.name=4", "command line: modle: unknown key; did you mean 'model'?"),
        ("model.name.x=4", "command line: model.name.x: model.name is a value, not a section, and has no keys"),
        (
            "method.rank",
            "command line: 'method.rank' is not an override; write key=value, such as method.rank=16",
        ),
        ("=4", "command line: '=4' is not an override; write key=value, such as method.rank=16"),
        ("method.targets=[a", "command line: method.targets: not valid YAML: "),
        ("method.length=3", "command line: method.length: not a field of method lora, only of prefix"),
    ],
)
def test_a_fault_on_the_command_line_says_so(override, line):
    assert only_problem(VALID, (override,)).startswith(line)


def test_an_override_that_is_given_twice_is_reported():
    assert only_problem(VALID, ("method.rank=4", "method.rank=8")) == "command line: method.rank: given twice"


def test_another_method_reports_the_fields_that_do_not_belong_at_their_lines():
    assert only_problem(VALID, ("method.type=prefix",)) == (
        "r.yaml:5: method.rank: not a field of method prefix, only of lora, qlora"
    )
    assert parse_recipe(VALID, ["method.type=qlora"]).method.rank == 8
    assert parse_recipe(VALID, ["method={type: bitfit}"]).method.type == "bitfit"


def test_problems_of_the_file_come_before_those_of_the_command_line():
    problems = problems_of(VALID.replace("rank: 8", "rank: 0"), ("training.batch_size=0",))
    assert [problem.file for problem in problems] == ["r.yaml", "command line"]


def test_an_override_mends_a_fault_of_the_file():
    assert problems_of(VALID.replace("rank: 8", "rank: 0"), ("method.rank=4",)) == []


def test_a_bad_override_of_several_recipes_is_reported_once(tmp_path):
    paths = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    for path in paths:
        path.write_text(VALID)
    with pytest.raises(RecipeError) as caught:
        list_variants(paths, ["method.rank=0"])
    assert len(caught.value.problems) == 1
