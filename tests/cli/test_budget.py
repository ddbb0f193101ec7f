"""`peftlab budget`: a recipe on standard output that checks, what it reaches on standard error."""

from __future__ import annotations

import json

import pytest

from peftlab.recipe.load import load_recipe, parse_recipe
from peftlab.reports import BudgetReport

from .commands import TINY
from .test_answers import answer  # noqa: F401


def test_budget_prints_a_recipe_that_loads_and_what_it_reaches(answer):  # noqa: F811
    code, out, errors = answer("budget", TINY, "trainable=300k", "method.rank=4")
    assert code == 0
    assert errors[0] == "method.rank=13 method.alpha=52.0: 284,544 of 300,000 parameters (-5.15%), met"
    assert errors[1] == "reason: one step of method.rank changes it by 21,888 parameters"
    solved, asked = parse_recipe(out), load_recipe(TINY, ["method.rank=13", "method.alpha=52"])
    assert solved == asked


def test_budget_answers_json_with_report_and_recipe(answer):  # noqa: F811
    code, out, errors = answer("budget", "--json", TINY, "method.targets=attention", "stored=200kB")
    found = json.loads(out)
    assert (code, errors) == (0, [])
    error = found["budget"].pop("error")
    report = BudgetReport.model_validate(found["budget"])
    assert report.error == error and report.solved["method.rank"] == found["recipe"]["method"]["rank"]
    assert found["recipe"]["method"]["targets"] == "attention"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["method.rank=4"], "no budget given; give exactly one, such as trainable=300k"),
        (["trainable=1k", "stored=1MB"], "2 budgets (trainable=1k, stored=1MB) given; give exactly one"),
        (["trainble=300k"], "unknown budget 'trainble'; did you mean 'trainable'?"),
        (["trainable=300k", "method.rnk=4"], "method.rnk: unknown key; did you mean 'rank'?"),
        (["trainable=300k", "method.targets=[q_prj]"], "'q_prj' matches no linear layer"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(answer, arguments, told):  # noqa: F811
    code, out, errors = answer("budget", TINY, *arguments)
    assert code in (2, 5) and out == "" and len(errors) == 1
    assert told in errors[0]
