"""The page: what the template shows of a comparison, as plain values; the template escapes them all."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from peftlab.comparison.columns import NONE, Column, Line, interval_text, shared_decimals, signed, state_bytes
from peftlab.comparison.findings import Findings, peak_bytes
from peftlab.comparison.outcome import Outcome, Run, Variant
from peftlab.comparison.report.pictures import Picture
from peftlab.comparison.resampling import REPLICATES
from peftlab.comparison.words import conclude, describe_groups, names_of
from peftlab.quantities import format_bytes, format_change, format_metric

EXAMPLE_PROMPTS = 5
TEXT_CHARACTERS = 1200


@dataclass(frozen=True)
class Cell:
    """One cell of the table: what it says, what it adds in small, and the value by which it sorts."""

    column: Column
    text: str
    small: str
    sort: float | str


@dataclass(frozen=True)
class Example:
    """One prompt, its reference, and what every variant answered."""

    prompt: str
    reference: str
    answers: list[tuple[str, str]]


def render_page(
    outcome: Outcome, findings: Findings, lines: Sequence[Line], columns: Sequence[Column],
    pictures: Sequence[Picture], problems: Sequence[str],
) -> str:  # fmt: skip
    """Return the whole page as HTML that needs nothing but itself."""
    can, cannot = conclude(outcome, findings)
    script = _template_text("table.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _environment().get_template("report.html").render(
        report=outcome.report,
        findings=findings,
        facts=_facts(outcome, findings),
        groups=[(family.budget, describe_groups(family, names_of(outcome), outcome.report.higher_is_better))
                for family in findings.families],
        can=can,
        cannot=cannot,
        columns=columns,
        rows=[(line, [_cell(column, line) for column in columns]) for line in lines],
        details=[_details(outcome, findings, line) for line in lines],
        budgets=[budget for budget in outcome.budgets if budget],
        pictures={picture.name: picture for picture in pictures},
        memory=_memory(outcome),
        examples=examples_of(outcome),
        failures=[(variant, run) for variant, run, _ in outcome.all_runs() if not run.finished],
        problems=[*problems, *outcome.problems, *findings.notes],
        replicates=REPLICATES,
        style=Markup(_template_text("report.css")),
        script=Markup(script),
        script_digest=digest,
    )  # fmt: skip


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("peftlab.comparison.report"), autoescape=True, undefined=jinja2.StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else visible(str(value)),
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def _template_text(name: str) -> str:
    return (files("peftlab.comparison.report") / "templates" / name).read_text(encoding="utf-8")


def visible(text: str) -> str:
    """Return text without the control characters that HTML forbids."""
    return "".join(character for character in text if character.isprintable() or character in "\n\t\u200d\u200c")


def _memory(outcome: Outcome) -> list[tuple[str, str, str, str, str]]:
    """Return for every variant gradients and optimiser, predicted and measured peak, and the prediction's error."""
    rows = []
    for variant in outcome.variants:
        measured, predicted = (peak_bytes(variant.example, source) for source in ("measured", "predicted"))
        if measured is None and predicted is None:
            continue
        error = format_change(predicted / measured - 1).replace("%", " %") if measured and predicted else NONE
        sizes = (state_bytes(variant.example), predicted, measured)
        texts = [NONE if size is None else format_bytes(size) for size in sizes]
        rows.append((variant.label, *texts, signed(error)))
    return rows


def _facts(outcome: Outcome, findings: Findings) -> list[str]:
    """Return the comparison in figures: variants, seeds, rows, model and data."""
    runs = {run.trial.run: run for _, run, _ in outcome.all_runs()}.values()  # budgets may share a run
    facts = [
        f"{len(outcome.variants)} variants",
        f"{len(outcome.report.seeds)} seed{'s' if len(outcome.report.seeds) != 1 else ''}",
        f"{len(runs)} runs, {sum(run.finished for run in runs)} finished",
    ]
    if findings.rows:
        facts.append(f"{findings.rows} {'test' if findings.part else 'evaluation'} rows")
    recipes = [variant.example.result.recipe for variant in outcome.variants if variant.example]
    models = dict.fromkeys(str(recipe.get("model", {}).get("name")) for recipe in recipes)
    data = dict.fromkeys(str(recipe.get("data", {}).get("train")) for recipe in recipes)
    return facts + [f"model {name}" for name in models] + [f"data {name}" for name in data]


def _cell(column: Column, line: Line) -> Cell:
    value = column.value(line)
    text, small = re.fullmatch(r"(.*?)( [\[(].*|, merged.*)?", column.text(line), re.DOTALL).groups()
    if column.key in ("variant", "rate"):  # names may hold anything
        text, small = column.show(line) if value is not None else NONE, column.add(line)
    return Cell(column, text, (small or "").lstrip(", "), "" if value is None else value)


def _details(outcome: Outcome, findings: Findings, line: Line) -> dict[str, Any]:
    """Return what a row opens: every metric, its seeds and rates, the solved budget, recipe and environment."""
    variant, label = line.variant, line.variant.label
    metrics = {
        name: interval_text(found[label], shared_decimals([found[label]]))
        for name, found in findings.quality.items() if label in found
    }  # fmt: skip
    before = {
        title: interval_text(found[label], shared_decimals([found[label]]))
        for title, found in (
            (f"{outcome.report.metric} before", findings.before), ("general loss before", findings.general_before)
        ) if label in found
    }  # fmt: skip
    return {
        "metrics": metrics | before,
        "runs": [(run, format_metric(run.trial.validation), format_metric(run.trial.test)) for run in _once(variant)],
        "solution": variant.report.solution,
        "recipe": line.run.recipe if line.run else "",
        "environment": _flat(line.run.result.environment) if line.run else [],
    }


def _once(variant: Variant) -> list[Run]:
    """Return the runs of a variant, seeds first, each once."""
    return list({run.trial.run: run for run in (*variant.runs, *variant.sweep)}.values())


def _flat(environment: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the environment as lines: nested names joined, lists as words."""
    lines = []
    for name, value in environment.items():
        if isinstance(value, dict):
            lines += [(f"{name}.{inner}", str(other)) for inner, other in value.items()]
        else:
            lines.append((name, " ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return lines


def examples_of(outcome: Outcome) -> list[Example]:
    """Return the generated answers side by side, prompt by prompt."""
    answers: dict[tuple[str, str], list[tuple[str, str]]] = {}
    bases: dict[tuple[str, str], str] = {}
    for variant in outcome.variants:
        for example in variant.example.result.examples if variant.example else []:
            asked = example.get("prompt", ""), example.get("reference", "")
            if example.get("before") is not None:
                bases.setdefault(asked, example["before"])
            if example.get("after") is not None:
                answers.setdefault(asked, []).append((variant.label, shorten(example["after"])))
    return [
        Example(shorten(prompt), shorten(reference), [
            *([("before training", shorten(bases[prompt, reference]))] if (prompt, reference) in bases else []), *given
        ])
        for (prompt, reference), given in list(answers.items())[:EXAMPLE_PROMPTS]
    ]  # fmt: skip


def shorten(text: str) -> str:
    """Return a text whose beginning and end have room."""
    half = TEXT_CHARACTERS // 2
    return text if len(text) <= TEXT_CHARACTERS else f"{text[:half]} [...] {text[-half:]}"
