"""Tables for papers and the rows of all runs: what they hold, and that no name breaks them."""

from __future__ import annotations

import re

import pyarrow.csv
import pyarrow.parquet
import pytest

from peftlab.comparison.columns import filled_columns, interval_text, missed_in, shared_decimals
from peftlab.comparison.findings import find
from peftlab.comparison.rows import read_table
from peftlab.comparison.statistics import Estimate
from peftlab.comparison.tables import latex_table, markdown_table, paper_columns, run_records, write_records
from peftlab.reports import BudgetReport

from .conftest import HOSTILE
from .folders import TITLES, Maker


def found(mean, low, high):
    return Estimate(mean, low, high, None, 3, True, True)


def test_an_interval_shows_two_figures_of_the_narrowest_half():
    estimates = [found(3.14159, 3.04159, 3.24159), found(2.0, 1.988, 2.012)]
    assert shared_decimals(estimates) == 3
    assert interval_text(estimates[0], 3) == "3.142 [3.042, 3.242]"
    assert interval_text(found(-0.5, -0.6, -0.4), 1, "+") == "−0.5 [−0.6, −0.4]"
    assert interval_text(found(1.0, 1.0, 1.0), 2) == "1.00"
    assert shared_decimals([found(1.0, 1.0, 1.0)]) == 3


def test_markdown_has_a_row_for_every_variant_and_every_failure(hostile):
    lines = (hostile.page.parent / "table.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 + len(TITLES)
    cells = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
    assert len(cells) == 1, "a name broke a row"
    assert "<script" not in "".join(lines)
    (failed,) = [line for line in lines if line.startswith("| qlora ")]
    assert failed.endswith("| 0 of 3 (diverged) |")


def test_latex_is_escaped_and_every_row_has_its_cells(hostile):
    text = (hostile.page.parent / "table.tex").read_text(encoding="utf-8")
    body = text.partition(r"\midrule")[2].partition(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == len(TITLES)
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {8}
    (row,) = [line for line in body if "input" in line]
    assert r"\_\$x\_1\textasciicircum{}2\$ \& 50\% \textbackslash{}input\{x\} \textbar{} \#1" in row
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")


def test_columns_that_no_variant_fills_are_left_out(tmp_path):
    without = ("memory", "inference", "general")
    table = read_table(Maker(tmp_path, methods=("lora",), rows=20, without=without).write())
    columns = filled_columns(table, find(table))
    assert [column.key for column in columns] == [
        "variant", "quality", "group", "change", "trainable", "stored", "seconds", "learning_rate", "seeds"
    ]  # fmt: skip
    assert "peak memory" not in markdown_table(columns, table.rows)


class Forecast(Maker):
    """Runs that were sized for 10 seconds by their pace, and took 15.9; the peak of each is 54,315,764 bytes."""

    def fill(self, result, folder, method, loss):
        super().fill(result, folder, method, loss)
        result.seconds["training"] = 15.9

    def variant(self, method, budget, place):
        exact = BudgetReport(kind=budget.partition("=")[0], asked=10, reached=10, solved={}, met=True)
        return super().variant(method, budget, place).model_copy(update={"solution": exact})


@pytest.mark.parametrize(
    ("budget", "missed"),
    [
        ("seconds=10", "measured +59 %"),
        ("seconds=20", "measured −20 %"),
        ("seconds=15.7", None),
        ("memory=40MiB", "measured +29 %"),
        ("memory=1GiB", None),
        ("trainable=175k,memory=40MiB,seconds=10", "memory measured +29 %, seconds measured +59 %"),
        ("trainable=175k,seconds=20", None),
    ],
)
def test_what_the_runs_took_beyond_a_forecast_is_beside_the_budget(tmp_path, budget, missed):
    (row,) = read_table(Forecast(tmp_path, methods=("lora",), budgets=(budget,), rows=10).write()).rows
    assert missed_in(row) == missed


def test_a_missed_budget_says_by_how_much(plain):
    text = (plain.page.parent / "table.md").read_text(encoding="utf-8")
    assert "| full (rank 16) | trainable=200k (off +1874 %) |" in text
    assert "| lora (rank 16) | trainable=200k |" in text


def test_every_run_is_one_row_and_csv_and_parquet_say_the_same(hostile, tmp_path):
    rows = run_records(hostile.table)
    assert len(rows) == len({row["run"] for row in rows}) == len(TITLES) * (3 + 2)
    csv = pyarrow.csv.read_csv(
        hostile.page.parent / "rows.csv", parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True)
    )
    parquet = pyarrow.parquet.read_table(hostile.page.parent / "rows.parquet")
    assert parquet.to_pylist() == rows
    assert csv["run"].to_pylist() == parquet["run"].to_pylist()
    assert csv["variant"].to_pylist() == parquet["variant"].to_pylist()
    assert csv["test_after_loss"].to_pylist() == pytest.approx(parquet["test_after_loss"].to_pylist(), nan_ok=True)
    failed = [row for row in rows if row["status"] != "finished"]
    assert {row["variant"] for row in failed} == {"qlora"} and all(row["error"] for row in failed)
    assert HOSTILE["lora"] in {row["variant"] for row in rows}


def test_whole_numbers_and_fractions_share_a_column(tmp_path):
    write_records([{"a": 1, "b": None}, {"a": 0.5, "b": "x"}], tmp_path / "rows.csv", tmp_path / "rows.parquet")
    read = pyarrow.parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert read == [{"a": 1.0, "b": None}, {"a": 0.5, "b": "x"}]
    assert (tmp_path / "rows.csv").read_text() == '"a","b"\n1,\n0.5,"x"\n'


def test_a_table_for_papers_has_the_columns_that_fit(plain):
    columns = paper_columns(filled_columns(plain.table, plain.findings))
    assert [column.key for column in columns] == [
        "variant", "budget", "quality", "group", "change", "general", "trainable", "memory", "seconds", "seeds"
    ]  # fmt: skip
    assert r"\begin{tabular}{llrlrrrrrr}" in latex_table(columns, plain.table.rows, "x")
