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

from peftlab.comparison.claims import conclude, describe_groups
from peftlab.comparison.columns import NONE, Column, interval_text, shared_decimals, signed
from peftlab.comparison.findings import Findings
from peftlab.comparison.peft_bench import BenchResult
from peftlab.comparison.points import Point
from peftlab.comparison.report.method import describe_method
from peftlab.comparison.report.pictures import Picture
from peftlab.comparison.rows import Row, Table
from peftlab.comparison.verdict import answer
from peftlab.quantities import format_bytes, format_change, format_count, format_metric, format_seconds, number
from peftlab.reports import SearchReport

EXAMPLE_PROMPTS = 5
SHOWN_SENTENCES = 14  # of each budget; the others are behind a click
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
    table: Table, findings: Findings, columns: Sequence[Column], pictures: Sequence[Picture], problems: Sequence[str],
    imported: Sequence[BenchResult] = (),
) -> str:  # fmt: skip
    """Return the page as HTML that needs no other file."""
    can, cannot = conclude(table, findings)
    script = _template_text("table.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _environment().get_template("report.html").render(
        report=table.report,
        findings=findings,
        facts=_facts(table, findings),
        answers=[(family.budget, answer(table, findings, family)) for family in findings.families],
        groups=[(family.budget, describe_groups(table, family)) for family in findings.families],
        shown_sentences=SHOWN_SENTENCES,
        can=can,
        cannot=cannot,
        columns=columns,
        rows=[(row, [_cell(column, row) for column in columns], _details(table, findings, row)) for row in table.rows],
        budgets=[budget for budget in table.budgets if budget],
        pictures={picture.name: picture for picture in pictures},
        frontiers=[picture.name for picture in pictures if picture.name.startswith("frontier_")],
        memory=_memory(table),
        searches=_searches(table),
        imported=[_imported(one) for one in imported],
        chosen=any(row.sweep for row in table.rows),
        settings="settings" if any(row.variant.search for row in table.rows) else "learning rate",
        examples=examples_of(table),
        failures=[(row, trial) for row, trial, _ in table.trials() if trial.lost],
        problems=[*problems, *table.problems, *findings.notes],
        method=describe_method(table, findings),
        settings_of=lambda trial: str(Point.of(trial.report.settings)),
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


def _memory(table: Table) -> list[tuple[str, ...]]:
    """Return for every row gradients and optimiser, predicted and measured peak, and the prediction's error."""
    rows = []
    for row in table.rows:
        if row.example is None:
            continue
        measured, predicted = (row.example.peak_bytes(source) for source in ("measured", "predicted"))
        if measured is None and predicted is None:
            continue
        error = format_change(predicted / measured - 1).replace("%", " %") if measured and predicted else NONE
        sizes = (row.example.update_bytes, predicted, measured)
        texts = [NONE if size is None else format_bytes(size) for size in sizes]
        rows.append((row.label, *texts, signed(error)))
    return rows


def _imported(one: BenchResult) -> tuple[str, ...]:
    """Return an imported run as the cells of its line."""
    trainable = NONE if one.trainable is None else format_count(one.trainable)
    forgetting = NONE if one.forgetting is None else signed(f"{one.forgetting:+.3f}")
    memory = NONE if one.memory_bytes is None else format_bytes(one.memory_bytes)
    costs = trainable, format_bytes(one.stored_bytes), memory, format_seconds(one.seconds)
    return one.name, one.method, one.model, f"{one.accuracy:.3f}", *costs, forgetting


def _searches(table: Table) -> list[dict[str, Any]]:
    """Return for every row that was searched what its search tried, chose and cost."""
    found = [(row, row.variant.search) for row in table.rows if row.variant.search]
    return [
        {
            "label": row.label,
            "trials": [search.trials, search.finished, search.stopped, search.failed],
            "seconds": f"{search.processor_seconds:,.0f}",
            "values": [format_metric(search.own), format_metric(search.best)],
            "settings": str(Point.of(row.variant.settings)),
            "space": search.space,
            "rule": _search_rule(search),
            "notes": search.notes,
        }
        for row, search in found
    ]


def _search_rule(search: SearchReport) -> str:
    """Return how a search stops its trials and itself."""
    caps = " or ".join(f"{cap:g} {name.replace('_', ' ')}" for name, cap in search.caps.items())
    early = "no trial is stopped early" if search.stopping == "none" else f"losers are stopped by {search.stopping}"
    return f"at most {caps}; {early}"


def _facts(table: Table, findings: Findings) -> list[str]:
    """Return the comparison in figures: variants, seeds, rows, model and data."""
    runs = {trial.report.run: trial for _, trial, _ in table.trials()}.values()  # budgets may share a run
    facts = [
        f"{len(table.rows)} variant{'s' if len(table.rows) != 1 else ''}",
        f"{len(table.report.seeds)} seed{'s' if len(table.report.seeds) != 1 else ''}",
        f"{len(runs)} runs, {sum(trial.finished for trial in runs)} finished"
        + (f", {stopped} stopped early" if (stopped := sum(trial.stopped for trial in runs)) else "")
        + (f", {unended} not ended" if (unended := sum(trial.unended for trial in runs)) else ""),
    ]
    if findings.rows:
        facts.append(number(findings.rows, f"{findings.kind} row"))
    recipes = [row.example.result.recipe for row in table.rows if row.example and row.example.result]
    models = dict.fromkeys(str(recipe.get("model", {}).get("name")) for recipe in recipes)
    data = dict.fromkeys(str(recipe.get("data", {}).get("train")) for recipe in recipes)
    return facts + [f"model {name}" for name in models] + [f"data {name}" for name in data]


def _cell(column: Column, row: Row) -> Cell:
    value = column.value(row)
    if column.key in ("variant", "learning_rate"):  # names may contain anything
        text, small = column.show(row) if value is not None else NONE, column.add(row)
    else:
        found = re.search(r" [\[(]|, merged", whole := column.text(row))
        text, small = (whole[: found.start()], whole[found.start() :]) if found else (whole, "")
    return Cell(column, text, small.lstrip(", "), "" if value is None else value)


def _details(table: Table, findings: Findings, row: Row) -> dict[str, Any]:
    """Return what a row opens: every metric, its trials, the solved budget, speed-ups, recipe and environment."""
    label, example = row.label, row.example
    metrics = {
        name: interval_text(found[label], shared_decimals([found[label]]))
        for name, found in findings.quality.items() if label in found
    }  # fmt: skip
    before = {
        title: interval_text(found[label], shared_decimals([found[label]]))
        for title, found in (
            (f"{table.metric} before", findings.before), ("general loss before", findings.general_before)
        ) if label in found
    }  # fmt: skip
    return {
        "metrics": metrics | before,
        "trials": [
            (one, format_metric(one.report.validation), format_metric(one.report.test)) for one in row.all_trials
        ],
        "solution": row.variant.solution,
        "recipe": example.recipe if example else "",
        "environment": _flat(example.result.environment) if example and example.result else [],
        "speed": example.result.speed.switches if example and example.result and example.result.speed else [],
    }


def _flat(environment: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the environment as lines: nested names joined, lists as words."""
    lines = []
    for name, value in environment.items():
        if isinstance(value, dict):
            lines += [(f"{name}.{inner}", str(other)) for inner, other in value.items()]
        else:
            lines.append((name, " ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return lines


def examples_of(table: Table) -> list[Example]:
    """Return the generated answers side by side, prompt by prompt."""
    answers: dict[tuple[str, str], list[tuple[str, str]]] = {}
    bases: dict[tuple[str, str], str] = {}
    for row in table.rows:
        for example in row.example.result.examples if row.example and row.example.result else []:
            asked = example.get("prompt", ""), example.get("reference", "")
            if example.get("before") is not None:
                bases.setdefault(asked, example["before"])
            if example.get("after") is not None:
                answers.setdefault(asked, []).append((row.label, shorten(example["after"])))
    return [
        Example(shorten(prompt), shorten(reference), [
            *([("before training", shorten(bases[prompt, reference]))] if (prompt, reference) in bases else []), *given
        ])
        for (prompt, reference), given in list(answers.items())[:EXAMPLE_PROMPTS]
    ]  # fmt: skip


def shorten(text: str) -> str:
    """Return a text, of a long one its beginning and end."""
    half = TEXT_CHARACTERS // 2
    return text if len(text) <= TEXT_CHARACTERS else f"{text[:half]} [...] {text[-half:]}"
