"""What a user should know of the rows before hours go into them: what was cut, left out or is in both parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from peftlab.recipe.schema import Recipe


def note_data(recipe: Recipe, report: dict[str, Any], processes: int = 1) -> list[str]:
    """Return one line for each peculiarity in the report of a data set."""
    parts = {name: part for name, part in report.items() if isinstance(part, dict) and part.get("rows")}
    lines = [line for name, part in parts.items() for line in _note_part(f"data.{name}", part, recipe)]
    for name, key in (("evaluation", "overlap"), ("test", "test_overlap")):
        if overlap := report.get(key):
            rows = report[name]["rows"]
            lines.append(f"data.{name}: {overlap} of {rows} rows are in the training rows too: their loss flatters")
    if report.get("dated"):
        lines.append(
            "data.train: the chat template writes today's date, so rows differ from day to day; fix the date by an"
            " argument of the template in data.template_kwargs"
        )
    step = recipe.training.batch_size * recipe.training.gradient_accumulation * processes
    if step > report["train"]["rows"]:
        told = f"a step takes {step} rows and there are {report['train']['rows']}: rows repeat within a step"
        lines.append(f"training.batch_size: {told}")
    return lines


def _note_part(name: str, part: dict[str, Any], recipe: Recipe) -> Iterator[str]:
    limit, whole = recipe.data.max_length, part["rows"] + part["dropped"]
    if part["truncated"]:
        lost = f"; {part['lost_supervised']} of them lost supervised tokens" if part["lost_supervised"] else ""
        yield f"{name}: {part['truncated']} of {whole} rows are longer than data.max_length ({limit}): cut{lost}"
    if part["dropped"]:
        yield f"{name}: {part['dropped']} of {whole} rows are left out: no token in them is supervised"
    for reason, rows in part.get("reasons", {}).items():
        yield f"{name}: {rows} of these rows: {reason}"
    if part.get("carried"):
        yield f"{name}: {part['carried']} of {whole} rows contain special tokens in their own text; check the source"
    if part.get("unended"):
        yield from _note_ends(name, part)
    if part.get("prompts_cut"):
        yield (
            f"{name}: {part['prompts_cut']} prompts are longer than data.max_length ({limit}) leaves room for: cut at"
            " generation, behind their opening token and system text"
        )
    if part["straddling"]:
        told = "a token crosses from the prompt into the completion and is not supervised"
        yield f"{name}: in {part['straddling']} of {whole} rows {told}; end the prompt with a space or a line break"


def _note_ends(name: str, part: dict[str, Any]) -> Iterator[str]:
    if not (part.get("stop_ids") or part.get("stop_texts")):
        yield (
            f"{name}: no answer ends with a supervised end marker, so the model cannot learn to stop; use a chat"
            " template that writes one behind each answer, or set evaluation.generation.stop"
        )
    else:
        yield f"{name}: {part['unended']} answers end without a supervised end marker"
