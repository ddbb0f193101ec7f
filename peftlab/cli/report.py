"""`peftlab report`: the page, pictures and tables of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peftlab.cli.answer import answers
from peftlab.cli.options import AsJson, Debug, NoVerify
from peftlab.errors import UsageError

if TYPE_CHECKING:
    from peftlab.comparison.report.write import Written

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a comparison.", show_default=False)]
Page = Annotated[
    Path | None,
    typer.Option("--output", metavar="FILE", help="Where to write the page (default: FOLDER/report/report.html)."),
]

Imports = Annotated[
    list[Path] | None,
    typer.Option(
        "--import", metavar="FILE", help="Results of PEFT's method comparison, or a folder of them (repeatable)."
    ),
]
Export = Annotated[
    str | None,
    typer.Option("--export", metavar="peft-bench", help="Also write the runs as files of PEFT's method comparison."),
]
EXPORTS = ("peft-bench",)


@answers
def report(
    folder: Folder,
    output: Page = None,
    imports: Imports = None,
    export: Export = None,
    no_verify: NoVerify = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Any:
    """Write a comparison's report: one HTML page, pictures, tables."""
    if export not in (None, *EXPORTS):
        raise UsageError(f"--export {export!r}: unknown; known: {', '.join(EXPORTS)}")
    from peftlab.comparison.report.write import write_report

    written = write_report(folder, output, not no_verify, imports or (), export is not None)
    return describe(written), lambda: show_written(written), 0


def describe(written: Written) -> dict[str, Any]:
    """Return what was found and written as one JSON object."""
    from peftlab.comparison.claims import conclude

    table, findings = written.table, written.findings
    can, cannot = conclude(table, findings)
    return {
        "page": str(written.page),
        "files": [str(path) for path in written.files],
        "metric": table.metric,
        "rows": findings.rows,
        "variants": [
            {
                "variant": row.name, "budget": row.budget, "group": findings.letters.get(row.label),
                "metrics": {name: found[row.label] for name, found in findings.quality.items() if row.label in found},
                "change": findings.change.get(row.label),
                "general_change": findings.general_change.get(row.label),
            }
            for row in table.rows
        ],
        "pairs": [
            {"budget": family.budget, "pair": pair, "significant": pair.significant, "scope": pair.scope}
            for family in findings.families for pair in family.differences
        ],
        "beaten": findings.beaten,
        "answer": list_answers(written),
        "can": [claim.text for claim in can],
        "cannot": [claim.text for claim in cannot],
        "problems": written.problems,
    }  # fmt: skip


def show_written(written: Written) -> None:
    from peftlab.cli.render import show
    from peftlab.comparison.claims import conclude

    print(f"page: {written.page}\npictures and tables: {written.files[-1].parent}\n")  # unwrapped, to be copied
    limits = conclude(written.table, written.findings)[1]
    lines = [*answer_lines(written), "", *list_groups(written), "", *(f"but: {sentence}" for sentence in limits)]
    lines += [f"note: {problem}" for problem in written.problems]
    show("\n".join(lines))


def list_groups(written: Written) -> list[str]:
    """Return in words, budget by budget, which variants differ significantly."""
    from peftlab.comparison.claims import describe_groups

    table = written.table
    lines: list[str] = []
    for family in written.findings.families:
        title = f"{table.metric} under {family.budget}" if family.budget else table.metric
        lines += [f"{title}:", *map(str, describe_groups(table, family))]
    return lines


def list_answers(written: Written) -> list[dict[str, Any]]:
    """Return the plain answer of every budget, line by line, with the variant and figures that each is made from."""
    from peftlab.comparison.verdict import answer

    table, findings = written.table, written.findings
    names = {row.label: row.name for row in table.rows}
    return [
        {
            "budget": family.budget, "question": line.question, "text": line.text, "variant": names.get(line.label),
            "figures": line.figures,
        }
        for family in findings.families for line in answer(table, findings, family)
    ]  # fmt: skip


def answer_lines(written: Written) -> list[str]:
    """Return the answers for a terminal, budget by budget."""
    budgets: dict[str | None, list[str]] = {}
    for line in list_answers(written):
        question = line["question"]
        budgets.setdefault(line["budget"], []).append(f"{question[0].upper()}{question[1:]}: {line['text']}")
    return [text for budget, lines in budgets.items() for text in ([f"Under {budget}:"] if budget else []) + lines]
