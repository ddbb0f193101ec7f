"""A comparison as tables: one line a variant in Markdown and LaTeX, one row a run as CSV and Parquet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftlab.comparison.columns import Column, Line, state_bytes
from peftlab.comparison.findings import peak_bytes
from peftlab.comparison.outcome import Outcome, Run, Variant

# Of the columns, those that a page of paper has room for.
IN_PAPER = ("variant", "budget", "quality", "group", "change", "general", "trainable", "memory", "seconds", "seeds")


def paper_columns(columns: Sequence[Column]) -> list[Column]:
    return [column for column in columns if column.key in IN_PAPER]


def markdown_table(columns: Sequence[Column], lines: Sequence[Line]) -> str:
    """Return the table of variants in Markdown."""

    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(map(_markdown, cells)) + " |"

    rule = "|" + "|".join("---:" if column.number else "---" for column in columns) + "|"
    body = [row([column.text(line) for column in columns]) for line in lines]
    return "\n".join([row([column.title for column in columns]), rule, *body]) + "\n"


def _markdown(text: str) -> str:
    """Return text that a Markdown cell shows as it is."""
    text = " ".join(text.split())
    for mark in "\\`*_[]<>|~#":
        text = text.replace(mark, f"\\{mark}" if mark not in "<>" else {"<": "&lt;", ">": "&gt;"}[mark])
    return text


LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "–": "--", "−": "$-$", "×": r"$\times$", "|": r"\textbar{}",
}  # fmt: skip


def latex_table(columns: Sequence[Column], lines: Sequence[Line], caption: str) -> str:
    """Return the table of variants for LaTeX with the package booktabs."""
    spec = "".join("r" if column.number else "l" for column in columns)
    rows = [" & ".join(_latex(column.text(line)) for column in columns) + r" \\" for line in lines]
    return "\n".join([
        "% needs \\usepackage{booktabs,graphicx}",
        r"\begin{table}", r"\centering", rf"\caption{{{_latex(caption)}}}",
        r"\resizebox{\linewidth}{!}{%", rf"\begin{{tabular}}{{{spec}}}", r"\toprule",
        " & ".join(_latex(column.title) for column in columns) + r" \\", r"\midrule", *rows, r"\bottomrule",
        r"\end{tabular}}", r"\end{table}", "",
    ])  # fmt: skip


def _latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in " ".join(text.split()))


def run_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """Return one flat row for every run of the comparison, failed ones too, all with the same keys."""
    rows = [_run_row(variant, run, role) for variant, run, role in outcome.all_runs()]
    keys = dict.fromkeys(key for row in rows for key in row)
    return [{key: row.get(key) for key in keys} for row in rows]


def _run_row(variant: Variant, run: Run, role: str) -> dict[str, Any]:
    report, trial, result = variant.report, run.trial, run.result
    row: dict[str, Any] = {
        "variant": report.name, "method": report.method, "budget": report.budget, "role": role, "run": trial.run,
        "learning_rate": trial.learning_rate, "seed": trial.seed, "status": trial.status, "error": trial.error,
        "validation": trial.validation, "test": trial.test,
    }  # fmt: skip
    if report.solution:
        row |= {"budget_asked": report.solution.asked, "budget_reached": report.solution.reached}
    if result is None:
        return row
    if result.parameters:
        row |= {name: getattr(result.parameters, name) for name in ("total", "trainable", "stored_bytes")}
    row["gradient_and_optimiser_bytes"] = state_bytes(run)
    row |= {f"{source}_peak_bytes": peak_bytes(run, source) for source in ("predicted", "measured")}
    row |= {f"seconds_{name}": value for name, value in result.seconds.items()}
    if result.inference:
        row["extra_parameters"] = result.inference.extra_parameters
        row |= {f"latency_{state}": value for state, value in result.inference.seconds.items()}
    return row | {f"{when}_{name}": value for when, found in result.metrics.items() for name, value in found.items()}


def write_rows(rows: Sequence[dict[str, Any]], csv: Path, parquet: Path) -> None:
    """Write the rows of all runs as CSV and as Parquet."""
    import pyarrow
    from pyarrow import csv as pyarrow_csv
    from pyarrow import parquet as pyarrow_parquet

    columns = {key: [row[key] for row in rows] for key in (rows[0] if rows else {})}
    table = pyarrow.table({key: pyarrow.array(_alike(values)) for key, values in columns.items()})
    pyarrow_csv.write_csv(table, csv)
    pyarrow_parquet.write_table(table, parquet)


def _alike(values: list[Any]) -> list[Any]:
    """Return whole numbers as floats where a column has both."""
    mixed = any(isinstance(value, float) for value in values)
    return [float(value) if mixed and isinstance(value, int) else value for value in values]
