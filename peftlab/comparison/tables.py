"""A comparison's table as Markdown and LaTeX, and the rows of all its runs as CSV and Parquet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftlab.comparison.columns import Column
from peftlab.comparison.rows import Row, Table
from peftlab.comparison.trials import Trial
from peftlab.files import write_atomically

# Of the columns, those that a page of paper has room for.
IN_PAPER = ("variant", "budget", "quality", "group", "change", "general", "trainable", "memory", "seconds", "seeds")


def paper_columns(columns: Sequence[Column]) -> list[Column]:
    return [column for column in columns if column.key in IN_PAPER]


def markdown_table(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """Return the table in Markdown."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(map(_markdown, cells)) + " |"

    rule = "|" + "|".join("---:" if column.number else "---" for column in columns) + "|"
    body = [line([column.text(row) for column in columns]) for row in rows]
    return "\n".join([line([column.title for column in columns]), rule, *body]) + "\n"


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


def latex_table(columns: Sequence[Column], rows: Sequence[Row], caption: str) -> str:
    """Return the table for LaTeX with the package booktabs."""
    spec = "".join("r" if column.number else "l" for column in columns)
    body = [" & ".join(_latex(column.text(row)) for column in columns) + r" \\" for row in rows]
    return "\n".join([
        "% needs \\usepackage{booktabs,graphicx}",
        r"\begin{table}", r"\centering", rf"\caption{{{_latex(caption)}}}",
        r"\resizebox{\linewidth}{!}{%", rf"\begin{{tabular}}{{{spec}}}", r"\toprule",
        " & ".join(_latex(column.title) for column in columns) + r" \\", r"\midrule", *body, r"\bottomrule",
        r"\end{tabular}}", r"\end{table}", "",
    ])  # fmt: skip


def _latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in " ".join(text.split()))


def run_records(table: Table) -> list[dict[str, Any]]:
    """Return one flat record for every run of the comparison, failed ones too, all with the same keys."""
    records = [_run_record(row, trial, role) for row, trial, role in table.trials()]
    keys = dict.fromkeys(key for record in records for key in record)
    return [{key: record.get(key) for key in keys} for record in records]


def _run_record(row: Row, trial: Trial, role: str) -> dict[str, Any]:
    variant, report, result = row.variant, trial.report, trial.result
    record: dict[str, Any] = {
        "variant": variant.name, "method": variant.method, "budget": variant.budget, "role": role, "run": report.run,
        "learning_rate": report.learning_rate, "seed": report.seed, "status": report.status, "error": report.error,
        "validation": report.validation, "test": report.test,
    }  # fmt: skip
    if variant.solution:
        record |= {"budget_asked": variant.solution.asked, "budget_reached": variant.solution.reached}
    if result is None:
        return record
    if result.parameters:
        record |= {name: getattr(result.parameters, name) for name in ("total", "trainable", "stored_bytes")}
    record["gradient_and_optimiser_bytes"] = trial.update_bytes
    record |= {f"{source}_peak_bytes": trial.peak_bytes(source) for source in ("predicted", "measured")}
    record |= {f"seconds_{name}": value for name, value in result.seconds.items()}
    if result.inference:
        record["extra_parameters"] = result.inference.extra_parameters
        record |= {f"latency_{state}": value for state, value in result.inference.seconds.items()}
    return record | {f"{when}_{name}": value for when, found in result.metrics.items() for name, value in found.items()}


def write_records(records: Sequence[dict[str, Any]], csv: Path, parquet: Path) -> None:
    """Write the records of all runs as CSV and as Parquet."""
    import pyarrow
    from pyarrow import csv as pyarrow_csv
    from pyarrow import parquet as pyarrow_parquet

    columns = {key: [record[key] for record in records] for key in (records[0] if records else {})}
    table = pyarrow.table({key: pyarrow.array(_same_type(values)) for key, values in columns.items()})
    for path, write in ((csv, pyarrow_csv.write_csv), (parquet, pyarrow_parquet.write_table)):
        content = pyarrow.BufferOutputStream()
        write(table, content)
        write_atomically(path, content.getvalue().to_pybytes())


def _same_type(values: list[Any]) -> list[Any]:
    """Return whole numbers as floats where a column has both."""
    mixed = any(isinstance(value, float) for value in values)
    return [float(value) if mixed and isinstance(value, int) else value for value in values]
