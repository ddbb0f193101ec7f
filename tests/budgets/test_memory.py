"""Sizes solved for planned memory: the largest that fits, found with few plans."""

from __future__ import annotations

import pytest

from peftlab.budgets import memory
from peftlab.budgets.solve import apply_budget
from peftlab.memory.fit import with_settings
from peftlab.methods import METHODS
from peftlab.recipe.budget import parse_budget
from peftlab.reports import MemoryReport
from peftlab.runs.plan import plan
from tests.budgets.recipes import recipe_for
from tests.budgets.shapes import published_shape
from tests.memory.real import tiny_recipe, write_model

BASE = 10**9
LARGEST = {
    "full": {"method.layers": "all"},
    "lora": {"method.rank": 768},
    "qlora": {"method.rank": 768},
    "adapters": {"method.bottleneck": 768},
    "prefix": {"method.length": 256},
    "bitfit": {"method.terms": "all"},
}


@pytest.fixture
def plans(monkeypatch):
    """Plan by a formula, 16 bytes for what trains beside a base; gives the planned recipes."""
    planned = []

    def open_formula(recipe, device, budget):
        def formula(recipe):
            planned.append(recipe)
            needed = BASE + 16 * recipe.method.count_trainable(published_shape("BERT-base"))
            return MemoryReport(source="predicted", device="cpu", peak_bytes=needed, capacity_bytes=budget.bytes)

        return formula

    monkeypatch.setattr(memory, "open_planner", open_formula)
    return planned


def solve(kind: str, budget: str):
    shape = published_shape("BERT-base")
    return apply_budget(recipe_for({"type": kind}, shape.task), parse_budget(budget), shape)


@pytest.mark.parametrize(("kind", "field"), [("lora", "rank"), ("adapters", "bottleneck"), ("full", "layers")])
def test_the_largest_size_that_fits_is_found_with_few_plans(plans, kind, field):
    solved, report = solve(kind, "memory=1.2GB")
    assert report.met and report.reason is None
    assert report.reached <= 1.2e9 < report.reached + report.step
    shape, larger = published_shape("BERT-base"), solved.method.resized(field, getattr(solved.method, field) + 1)
    assert report.step == 16 * (larger.count_trainable(shape) - solved.method.count_trainable(shape))
    assert len(plans) <= 7


@pytest.mark.parametrize("kind", METHODS)
def test_a_budget_above_the_largest_size_gives_that_and_says_so(plans, kind):
    report = solve(kind, "memory=80GiB")[1]
    assert report.met and LARGEST[kind].items() <= report.solved.items() and report.error < 0
    assert "is the largest size" in report.reason
    assert len(plans) <= 4


def test_a_budget_below_the_smallest_size_is_not_met_and_says_what_it_needs(plans):
    report = solve("lora", "memory=100MiB")[1]
    assert not report.met and report.solved["method.rank"] == 1 and report.error > 0
    assert report.reason.startswith("even method.rank=1 needs 9")
    assert len(plans) == 1


def test_a_solved_prefix_is_planned_to_fit_and_one_longer_is_not(tmp_path):
    recipe = tiny_recipe(write_model(tmp_path, "gpt2"), {"type": "prefix"}, batch_size=1)
    limit = plan(with_settings(recipe, {"method.length": 9})).needed_bytes
    solved, report = apply_budget(recipe, parse_budget(f"memory={limit + 100}B"))
    assert solved.method.length == 9 and report.met and report.reached == limit
    assert plan(with_settings(recipe, {"method.length": 10})).needed_bytes == limit + report.step > limit + 100
