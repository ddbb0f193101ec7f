"""`peftlab report`: the page, pictures and tables of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peftlab.cli.answer import answers
from peftlab.cli.options import AsJson, Debug

if TYPE_CHECKING:
    from peftlab.comparison.report.write import Written

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of a comparison.", show_default=False)]
Page = Annotated[
    Path | None,
    typer.Option("--output", metavar="FILE", help="Where to write the page (default: FOLDER/report/report.html)."),
]


@answers
def report(folder: Folder, output: Page = None, as_json: AsJson = False, debug: Debug = False) -> Any:
    """Write a comparison's report: one HTML page, pictures, tables."""
    from peftlab.comparison.report.write import write_report

    written = write_report(folder, output)
    return describe(written), lambda: show_written(written), 0


def describe(written: Written) -> dict[str, Any]:
    """Return what was found and written as one JSON object."""
    from peftlab.comparison.words import conclude

    outcome, findings = written.outcome, written.findings
    can, cannot = conclude(outcome, findings)
    return {
        "page": str(written.page),
        "files": [str(path) for path in written.files],
        "metric": outcome.report.metric,
        "rows": findings.rows,
        "variants": [
            {
                "variant": variant.report.name, "budget": variant.report.budget,
                "group": findings.letters.get(variant.label),
                "metrics": {name: found[variant.label] for name, found in findings.quality.items()
                            if variant.label in found},
                "change": findings.change.get(variant.label),
                "general_change": findings.general_change.get(variant.label),
            }
            for variant in outcome.variants
        ],
        "pairs": [
            {"budget": family.budget, "pair": pair, "sure": pair.sure}
            for family in findings.families for pair in family.differences
        ],
        "beaten": findings.beaten,
        "can": can,
        "cannot": cannot,
        "problems": written.problems,
    }  # fmt: skip


def show_written(written: Written) -> None:
    from peftlab.cli.render import show
    from peftlab.comparison.words import conclude

    outcome = written.outcome
    print(f"page: {written.page}\npictures and tables: {written.files[-1].parent}\n")  # paths whole, to be copied
    lines = [*list_groups(written), "", *(f"but: {sentence}" for sentence in conclude(outcome, written.findings)[1])]
    lines += [f"note: {problem}" for problem in written.problems]
    show("\n".join(lines))


def list_groups(written: Written) -> list[str]:
    """Return in words, budget by budget, which variants can be told apart."""
    from peftlab.comparison.words import describe_groups, names_of

    outcome, lines = written.outcome, []
    for family in written.findings.families:
        title = f"{outcome.report.metric} under {family.budget}" if family.budget else outcome.report.metric
        lines += [f"{title}:", *describe_groups(family, names_of(outcome), outcome.report.higher_is_better)]
    return lines
