"""Frontiers: which sizes are run, and the curves that are drawn of what they reached."""

from __future__ import annotations

import json
from dataclasses import replace
from statistics import fmean

import pytest

from peftlab.comparison.findings import find
from peftlab.comparison.lab import Lab
from peftlab.comparison.report.frontiers import axes_of, curves_of, draw_frontier
from peftlab.comparison.rows import read_table
from peftlab.comparison.variants import Settings, keep_sizes, open_variants
from peftlab.comparison.verdict import answer
from peftlab.recipe.comparison import list_variants
from peftlab.recipe.dump import dump_recipe
from peftlab.reports import BudgetReport
from tests.runs.recipes import short_recipe

from .folders import TRAINABLE, Maker

BUDGETS = ("trainable=12k", "trainable=46k", "trainable=175k")
REACHED = (12_000, 46_000, 175_000)


class Sizes(Maker):
    """A comparison of methods in three sizes, of which BitFit has one."""

    def variant(self, method, budget, place):
        report = super().variant(method, budget, place)
        reached = TRAINABLE["bitfit"] if method == "bitfit" else REACHED[place]
        solution = BudgetReport(kind="trainable", asked=REACHED[place], reached=reached, solved={}, met=True)
        return report.model_copy(update={"solution": solution})


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes")
    return read_table(Sizes(folder, methods=("lora", "adapters", "bitfit"), budgets=BUDGETS, rows=40).write())


def test_each_curve_has_the_amounts_that_its_sizes_reached_once_and_ascending(table):
    assert axes_of(table) == ["trainable"]
    curves = curves_of(table, "trainable")
    assert [reached for reached, _ in curves["lora"]] == list(REACHED)
    assert [label for _, label in curves["lora"]] == [f"lora ({budget})" for budget in BUDGETS]
    assert [reached for reached, _ in curves["bitfit"]] == [TRAINABLE["bitfit"]]


def test_a_curve_is_drawn_with_a_band_and_a_single_size_with_a_bar(table):
    vector, pixels = draw_frontier(table, find(table), "trainable")
    assert vector.count("FillBetweenPolyCollection") == 2, "lora and adapters"
    assert ">trainable parameters<" in vector and ">bitfit<" in vector and pixels.startswith(b"\x89PNG")


def test_without_several_sizes_there_is_no_frontier(tmp_path):
    folder = Sizes(tmp_path, methods=("bitfit",), budgets=BUDGETS[:2], rows=20).write()
    assert axes_of(read_table(folder)) == []


def test_each_size_of_a_frontier_is_run_once_for_the_amount_that_it_is_nearest_to(tmp_path):
    files = []
    for method in ("lora", "bitfit"):
        files.append(tmp_path / f"{method}.yaml")
        files[-1].write_text(dump_recipe(short_recipe(method, tmp_path / "unused")))
    budgets = ("trainable=11k", "trainable=12k", "trainable=60k", "trainable=61k")
    settings = Settings(budgets=budgets, rates=(1e-3,), frontier="trainable=11k..61k")
    solved = open_variants(list_variants(files, []), settings, "loss", tmp_path)
    sizes = [(one.recipe.method.type, one.budget, one.solution.reached) for one in solved]
    assert [one for one in sizes if one[0] == "bitfit"] == [
        ("bitfit", "trainable=11k", 4_224), ("bitfit", "trainable=12k", TRAINABLE["bitfit"]),
    ]  # fmt: skip
    lora = [reached for method, _, reached in sizes if method == "lora"]
    assert len(lora) == len(set(lora)) == 2 and lora == sorted(lora)
    notes = list(Lab("sizes", tmp_path, settings, solved, "loss", []).note_budgets())
    once = "bitfit trainable=12k: trainable=60k and trainable=61k would give the same size, which is run once"
    assert any(note.endswith(once) for note in notes)
    told = {(one.name, other) for one in solved for other in one.same_size}
    run = {(one.name, one.budget) for one in solved}
    asked = {(one.name, budget) for one in solved for budget in budgets}
    assert told | run == asked and not told & run


def test_an_answer_names_the_variants_whose_size_is_run_under_another_amount(tmp_path):
    class Once(Sizes):
        """BitFit's one size is run under the first amount."""

        def variant(self, method, budget, place):
            report = super().variant(method, budget, place)
            return report.model_copy(update={"same_size": list(BUDGETS[1:])}) if method == "bitfit" else report

    folder = Once(tmp_path, methods=("lora", "adapters", "bitfit"), budgets=BUDGETS, rows=40).write()
    report = json.loads((folder / "comparison.json").read_text())
    report["variants"] = [one for one in report["variants"] if one["name"] != "bitfit" or one["budget"] == BUDGETS[0]]
    (folder / "comparison.json").write_text(json.dumps(report))
    table = read_table(folder)
    findings = find(table)
    told = {family.budget: [one.text for one in answer(table, findings, family) if one.question == "not in this answer"]
            for family in findings.families}  # fmt: skip
    text = "bitfit (under trainable=12k): the nearest size is that of another amount, and is run there."
    assert told == {BUDGETS[0]: [], BUDGETS[1]: [text], BUDGETS[2]: [text]}


LOSSES = {"lora": (4.0, 3.3, 3.8), "adapters": (4.1, 3.0, 3.7), "bitfit": (4.2, 4.2, 4.2)}
"""By amount. Adapters of the second amount have reached 200,000, more than any amount."""


class Bent(Sizes):
    """LoRA is best at the second amount, and adapters of the best loss are larger than every amount."""

    def variant(self, method, budget, place):
        report = super().variant(method, budget, place)
        if (method, place) == ("adapters", 1):
            report.solution.reached = 200_000
        return report

    def run(self, run, method, rate, *, loss=9.9, **how):
        return super().run(run, method, rate, loss=LOSSES[method][int(run.split("-")[1])], **how)


def answers_of(folder, question):
    table = read_table(folder)
    findings = find(table)
    return {
        family.budget: [one for one in answer(table, findings, family) if one.question == question]
        for family in findings.families
    }


def test_an_answer_names_the_best_of_smaller_sizes_where_it_is_better(tmp_path):
    folder = Bent(tmp_path, budgets=BUDGETS, rows=200, methods=tuple(LOSSES)).write()
    found = answers_of(folder, "better with less")
    assert (found[BUDGETS[0]], found[BUDGETS[1]]) == ([], [])
    (line,) = found[BUDGETS[2]]
    _, pair = line.figures
    lora, adapters = (
        [json.loads((folder / "runs" / f"{run}-{seed}" / "result.json").read_text()) for seed in (0, 1, 2)]
        for run in ("lora-1-0.001", "adapters-2-0.001")
    )
    better, worse = (fmean(one["metrics"]["test_after"]["loss"] for one in runs) for runs in (lora, adapters))
    assert line.label == f"lora ({BUDGETS[1]})"
    assert line.text.startswith(f"lora (under {BUDGETS[1]}), loss {better:.3f} [")
    assert f"; significantly better than adapters by {worse - better:.2f} [" in line.text
    assert pair.significant and pair.value == pytest.approx(better - worse)


def test_smaller_sizes_that_are_not_better_are_not_named(tmp_path):
    folder = Sizes(tmp_path, methods=("lora", "adapters"), budgets=BUDGETS, rows=40).write()
    assert not any(answers_of(folder, "better with less").values()), "each amount takes 0.1 off the loss"


def test_one_limit_of_several_does_not_say_that_a_size_is_within_them(tmp_path):
    several = tuple(f"{budget},memory=1GiB" for budget in BUDGETS)
    folder = Bent(tmp_path, methods=("lora",), budgets=several, rows=40).write()
    assert not any(answers_of(folder, "better with less").values())


def test_what_cannot_be_solved_stays_with_its_error(tmp_path):
    file = tmp_path / "lora.yaml"
    file.write_text(dump_recipe(short_recipe("lora", tmp_path / "unused")))
    (one,) = list_variants([file], [])
    lost = replace(one, error="no such size")
    assert list(keep_sizes([lost, lost])) == [lost, lost]
