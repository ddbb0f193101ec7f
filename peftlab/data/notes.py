"""What a user should know about the rows before training: what was cut or dropped, and what occurs in two parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from peftlab.recipe.schema import Recipe


def note_data(recipe: Recipe, report: dict[str, Any], processes: int = 1) -> list[str]:
    """Return one line for each thing worth knowing in the report of a data set."""
    parts = {name: part for name, part in report.items() if isinstance(part, dict) and part.get("rows")}
    lines = [line for name, part in parts.items() for line in _note_part(f"data.{name}", part, recipe)]
    for name, key in (("evaluation", "overlap"), ("test", "test_overlap")):
        if overlap := report.get(key):
            rows = report[name]["rows"]
            lines.append(
                f"data.{name}: {overlap} of {rows} rows also occur in training, so their loss is too optimistic"
            )
    if report.get("dated"):
        lines.append(
            "data.train: the chat template writes today's date, so rows differ from day to day; fix the date by an"
            " argument of the template in data.template_kwargs"
        )
    step = recipe.training.batch_size * recipe.training.gradient_accumulation * processes
    if step > report["train"]["rows"]:
        found = f"a step takes {step} rows, and there are only {report['train']['rows']}: rows repeat within a step"
        lines.append(f"training.batch_size: {found}")
    return lines


def _note_part(name: str, part: dict[str, Any], recipe: Recipe) -> Iterator[str]:
    limit, whole = recipe.data.max_length, part["rows"] + part["dropped"]
    if part["truncated"]:
        lost = f"; {part['lost_supervised']} of them lost supervised tokens" if part["lost_supervised"] else ""
        yield f"{name}: {part['truncated']} of {whole} rows are longer than data.max_length ({limit}): cut{lost}"
    if part["dropped"]:
        yield f"{name}: {part['dropped']} of {whole} rows are dropped: no token in them is supervised"
    for reason, rows in part.get("reasons", {}).items():
        yield f"{name}: {rows} of these rows: {reason}"
    if part.get("carried"):
        yield f"{name}: {part['carried']} of {whole} rows contain special tokens in their own text; check the source"
    if part.get("unended"):
        yield from _note_ends(name, part)
    if part.get("unprompted"):
        yield (
            f"{name}: in {part['unprompted']} of {whole} rows the last answer does not begin as the template's"
            " generation prompt has it, so `generate` will give the model another prompt; make both agree with"
            " data.template_kwargs"
        )
    if part.get("prompts_cut"):
        yield (
            f"{name}: {part['prompts_cut']} prompts do not fit into data.max_length ({limit}): cut at generation,"
            " after their opening token and system text"
        )
    if part["straddling"]:
        found = "a token crosses from the prompt into the completion and is not supervised"
        yield f"{name}: in {part['straddling']} of {whole} rows {found}; end the prompt with a space or a line break"
    if part.get("unaligned"):
        yield f"{name}: words without a token of their own: {part['unaligned']}; their tags are ignored"


def _note_ends(name: str, part: dict[str, Any]) -> Iterator[str]:
    if not (part.get("stop_ids") or part.get("stop_texts")):
        yield (
            f"{name}: no answer ends with a supervised end marker, so the model cannot learn to stop; use a chat"
            " template that writes one after each answer, or set evaluation.generation.stop"
        )
    else:
        yield f"{name}: {part['unended']} answers end without a supervised end marker"
