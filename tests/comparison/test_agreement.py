"""What a comparison says in one place agrees with its other places: tables, sentences, pictures, the terminal."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from math import inf

import numpy as np
import pytest

from peftlab.cli.render import show
from peftlab.cli.render_comparison import render_comparison
from peftlab.comparison.claims import conclude, describe_groups
from peftlab.comparison.columns import filled_columns
from peftlab.comparison.findings import find
from peftlab.comparison.groups import winner_first
from peftlab.comparison.rows import read_table
from peftlab.comparison.statistics import compare_pairs, estimate
from peftlab.comparison.verdict import answer
from peftlab.errors import StorageError
from peftlab.evaluation.resampling import draw_metric
from peftlab.metrics import RowScores
from peftlab.quantities import format_metric

from .folders import Maker
from .invented import invent


def scores_of(*losses):
    return RowScores(np.array(losses), np.ones(len(losses)))


def change_records(folder, pattern, change):
    """Change the metrics in the records of some runs, and what the comparison says of them."""
    report = json.loads((folder / "comparison.json").read_text())
    for run in (folder / "runs").glob(pattern):
        record = json.loads((run / "result.json").read_text())
        change(record["metrics"])
        (run / "result.json").write_text(json.dumps(record))
        for trial in (trial for variant in report["variants"] for trial in variant["trials"]):
            if trial["run"] == run.name:
                trial["test"] = record["metrics"].get("test_after", record["metrics"]["after"]).get("loss")
    (folder / "comparison.json").write_text(json.dumps(report))
    return read_table(folder)


def cell(table, name, key):
    (column,) = [one for one in filled_columns(table, find(table)) if one.key == key]
    return column.text(next(row for row in table.rows if row.name == name))


@pytest.mark.parametrize("value", ["Infinity", None])
def test_a_seed_without_a_value_is_in_no_mean_on_the_terminal_and_is_named_there(tmp_path, capsys, value):
    folder = Maker(tmp_path, methods=("lora", "bitfit"), rows=30, without=("scores", "general", "sweep")).write()
    table = change_records(folder, "lora-0-0.001-2", lambda found: found["test_after"].update(loss=value))
    show(render_comparison(table))
    shown = capsys.readouterr().out
    mean = np.mean([trial.report.test for trial in table.rows[0].trials[:2]])
    assert f"{mean:.4f} ±" in shown and "inf" not in shown.replace("bitfit", "")
    assert "lora, seed 2: no loss (not finite); the mean leaves it out" in shown
    assert cell(table, "lora", "seeds") == "2 of 3 (not finite)"


def test_a_variant_without_test_rows_beside_one_that_has_them_has_no_value_anywhere(tmp_path, capsys):
    folder = Maker(tmp_path, methods=("lora", "bitfit"), rows=30, without=("scores", "general", "sweep")).write()
    table = change_records(folder, "bitfit-*", lambda found: found.pop("test_after"))
    assert list(find(table).quality["loss"]) == ["lora"]
    assert cell(table, "bitfit", "seeds") == "0 of 3 (no test rows)"
    show(render_comparison(table))
    shown = capsys.readouterr().out
    assert format_metric(table.rows[1].trials[0].report.test)[:4] not in shown
    assert "bitfit, seed 0: no loss (no test rows); the mean leaves it out" in shown


def test_no_sentence_gives_an_interval_beyond_what_the_metric_can_be(tmp_path):
    folder = Maker(tmp_path, methods=("lora", "bitfit"), rows=12, metric="accuracy").write()
    table = read_table(folder)
    findings = find(table)
    for family in findings.families:
        for label, found in family.estimates.items():
            assert found == findings.quality["accuracy"][label] and 0 <= found.low <= found.high <= 1


def test_a_variant_that_is_beaten_in_a_sentence_is_beaten_in_the_picture():
    """Pairs of one budget are one family wherever they are spoken of."""
    checked = 0
    for table in map(invent, range(80, 130)):
        findings = find(table)
        for family, cost in product(findings.families, findings.costs):
            for pair in family.significant:
                better, worse = winner_first(pair, table.report.higher_is_better)
                costs = findings.costs[cost]
                if costs and costs[better].no_more_than(costs[worse]):
                    checked += len(findings.families) > 1
                    assert better in findings.beaten[cost][worse]
    assert checked > 20


def test_runs_of_different_rows_are_ordered_but_no_difference_is_tested(tmp_path):
    folder = Maker(tmp_path, methods=("lora", "bitfit"), rows=30, without=("general",)).write()
    for run in (folder / "runs").glob("bitfit-*"):
        stored = {
            name: {column: values and values[:-1] for column, values in one.items()}
            for name, one in json.loads((run / "scores.json").read_text()).items()
        }
        record = json.loads((run / "result.json").read_text())
        for name, one in stored.items():
            record["metrics"][name]["loss"] = sum(one["loss"]) / sum(one["count"])
        (run / "scores.json").write_text(json.dumps(stored))
        (run / "result.json").write_text(json.dumps(record))
    table = read_table(folder)
    findings = find(table)
    (family,) = findings.families
    assert [pair.scope for pair in family.differences] == ["nothing"] and not findings.letters
    told = [*map(str, describe_groups(table, family)), *(line.text for line in answer(table, findings, family))]
    assert not any("ignificant" in sentence or "on these rows" in sentence for sentence in told)
    assert any("measured on different rows" in sentence for sentence in told)
    assert not any(findings.beaten["trainable"].values())


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_fewer_than_six_rows_show_no_chance_of_theirs(rows):
    """If all of five rows agree, a fair coin would have done so in 2 of 32 cases."""
    better, worse = scores_of(*[1.0] * rows), scores_of(*[1.3] * rows)
    sample = draw_metric("loss", [better, worse])
    (pair,) = compare_pairs(sample, ["a", "b"])
    assert pair.scope == "nothing" and not pair.significant and not estimate(sample, ["a", "b"])["a"].of_rows
    (pair,) = compare_pairs(draw_metric("loss", [better, better, worse, worse]), ["a", "a", "b", "b"])
    assert pair.scope == "rows"


def test_one_test_row_is_reported_without_a_claim_about_others(tmp_path):
    table = read_table(Maker(tmp_path, methods=("lora", "bitfit"), rows=1, without=("general",)).write())
    findings = find(table)
    (family,) = findings.families
    assert any("1 row cannot show the chance of rows" in note for note in findings.notes)
    texts = [line.text for line in answer(table, findings, family)]
    assert texts[0].endswith("on these rows.") and not any("show it in 80 %" in text for text in texts)


def test_equal_runs_differ_by_nothing_and_no_seed_would_change_that():
    random = np.random.default_rng(0)
    losses = random.gamma(4.0, 0.25, 50)
    sample = draw_metric("loss", [scores_of(*losses)] * 6)
    (pair,) = compare_pairs(sample, ["a"] * 3 + ["b"] * 3)
    assert (pair.value, pair.low, pair.high, pair.p, pair.of_seeds) == (0, 0, 0, 1, 0)
    whole = next(table for table in map(invent, range(99)) if len(table.rows) == 2 and table.rows[0].valued)
    table = replace(whole, rows=[replace(row, trials=whole.rows[0].valued[:1] * 3) for row in whole.rows])
    told = [str(claim) for claim in conclude(table, find(table))[1]]
    assert not any("may still differ" in sentence or "uncertainty" in sentence for sentence in told)


def test_a_run_that_is_listed_twice_is_one_seed(tmp_path):
    folder = Maker(tmp_path, methods=("lora",), seeds=(0, 1), rows=12, without=("general", "scores", "sweep")).write()
    report = json.loads((folder / "comparison.json").read_text())
    (variant,) = report["variants"]
    variant["trials"] = [*variant["trials"], *variant["trials"]]
    (folder / "comparison.json").write_text(json.dumps(report))
    table = read_table(folder)
    assert table.rows[0].status == "2 of 2" and find(table).quality["loss"]["lora"].seeds == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda report: report.update(higher_is_better=True), "higher_is_better: is true, which is wrong for loss"),
        (lambda report: report["variants"][0]["solution"].update(asked=0), "variants.0.solution.asked: "),
    ],
)
def test_a_damaged_report_that_would_turn_the_answer_round_is_one_line(change, message, tmp_path):
    parts = ("general", "scores", "sweep")
    folder = Maker(tmp_path, methods=("lora",), seeds=(0,), rows=12, budgets=("memory=1GiB",), without=parts).write()
    report = json.loads((folder / "comparison.json").read_text())
    change(report)
    (folder / "comparison.json").write_text(json.dumps(report))
    with pytest.raises(StorageError, match=message):
        read_table(folder)


def test_a_run_whose_name_no_file_can_have_is_not_read(tmp_path):
    folder = Maker(tmp_path, methods=("lora",), seeds=(0, 1), rows=12, without=("general", "scores", "sweep")).write()
    report = json.loads((folder / "comparison.json").read_text())
    report["variants"][0]["trials"][0]["run"] = "a\0b"
    (folder / "comparison.json").write_text(json.dumps(report))
    table = read_table(folder)
    assert len(table.rows[0].valued) == 1 and "is outside" in table.problems[0]


def test_small_figures_keep_their_digits():
    assert [format_metric(value) for value in (0.0, 3.45e-6, -2e-5, 0.1234567, 1e-3, inf)] == [
        "0.0000", "3.45e-06", "-2e-05", "0.1235", "0.0010", "inf",
    ]  # fmt: skip
