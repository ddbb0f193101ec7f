"""What a user should know about the rows before training: what was cut or dropped, and what occurs in two parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from peftlab.quantities import number
from peftlab.recipe.schema import Recipe


def note_data(recipe: Recipe, report: dict[str, Any], processes: int = 1) -> list[str]:
    """Return one line for each thing worth knowing in the report of a data set."""
    lines = note_parts(recipe, report, list(report))
    if doubt := recipe.task.doubt(report.get("labels") or ()):
        lines.append(f"data.train: {doubt}")
    lines += _note_split(report)
    lines += _note_leaks(report)
    if report.get("dated"):
        lines.append(
            "data.train: the chat template writes today's date, so rows differ from day to day; fix the day with"
            " data.date"
        )
    step = recipe.training.batch_size * recipe.training.gradient_accumulation * processes
    if step > report["train"]["rows"]:
        found = f"a step takes {step} rows, and there are only {report['train']['rows']}: rows repeat within a step"
        lines.append(f"training.batch_size: {found}")
    return lines


def note_parts(recipe: Recipe, report: dict[str, Any], names: Sequence[str]) -> list[str]:
    """Return one line for each thing that happened to the rows of the parts `names`."""
    parts = {name: report.get(name) for name in names}
    found = {name: part for name, part in parts.items() if isinstance(part, dict) and part.get("rows")}
    return [line for name, part in found.items() for line in _note_part(f"data.{name}", part, recipe)]


def _note_split(report: dict[str, Any]) -> Iterator[str]:
    if split := report.get("split"):
        found = f"data.train: {split['repeated']} rows share their prompt or group with another row"
        if split["together"]:
            yield f"{found}; such rows are in one part of the split (data.group_by: row splits by row)"
        else:
            yield f"{found}, in groups too large to split by, so parts share prompts; set data.group_by"


def _note_leaks(report: dict[str, Any]) -> Iterator[str]:
    for pair, leaks in report.get("leaks", {}).items():
        first, second = pair.split("/")
        rows, where = report[second]["rows"], "training" if first == "train" else f"data.{first}"
        because = ", so their loss is too optimistic" if first == "train" else ""
        if leaks["rows"]:
            yield f"data.{second}: {leaks['rows']} of {rows} rows also occur in {where}{because}"
        if (prompts := leaks.get("prompts", 0)) > leaks["rows"]:
            yield f"data.{second}: the prompts of {prompts} of {rows} rows also occur in {where}"
        if leaks["near"]:
            yield f"data.{second}: {leaks['near']} of {rows} rows are nearly equal to rows in {where}"
        if leaks["near"] is None:
            yield f"data.{second}: too much text to look for rows that are nearly equal to rows in {where}"


def _note_part(name: str, part: dict[str, Any], recipe: Recipe) -> Iterator[str]:
    limit, whole = recipe.data.max_length, part["rows"] + part["dropped"]
    limits = f"data.max_length ({limit})"
    if recipe.task.encodes_prompt:
        limits += f" or data.max_target_length ({recipe.data.target_limit})"
    yield from _note_reading(name, part)
    if part["truncated"]:
        turns = f" and {part['cut_turns']:,} messages" if part.get("cut_turns") else ""
        more = "more than " if part.get("cut_text") else ""
        cut = f" by {more}{part['cut_tokens']:,} tokens{turns}" if part.get("cut_tokens") else ""
        lost = f"; {part['lost_supervised']} of them lost supervised tokens" if part["lost_supervised"] else ""
        lost += f" ({part['lost_tokens']:,})" if part.get("lost_tokens") else ""
        yield f"{name}: {part['truncated']} of {whole} rows are longer than {limits}: cut{cut}{lost}"
    if part.get("chunked"):
        yield f"{name}: {number(part['chunked'], 'text')} longer than data.max_length ({limit}): cut into several rows"
    if part.get("skipped"):
        skipped = number(part["skipped"], "row")
        yield f"{name}: {skipped} longer than data.max_length ({limit}): left out (data.long: skip)"
    if part["dropped"]:
        yield f"{name}: {part['dropped']} of {whole} rows are dropped: no token in them is supervised"
    for reason, rows in part.get("reasons", {}).items():
        yield f"{name}: {rows} of these rows: {reason}"
    if part.get("carried"):
        yield f"{name}: {part['carried']} of {whole} rows contain special tokens in their own text; check the source"
    if part.get("unended"):
        yield from _note_ends(name, part)
    if part.get("unwritten_tools"):
        yield (
            f"{name}: {part['unwritten_tools']} of {whole} rows have tools, which the model's chat template does not"
            " write: the model does not see them; choose a model whose template does"
        )
    if part.get("unwritten_messages"):
        yield (
            f"{name}: in {part['unwritten_messages']} of {whole} rows the model's chat template leaves out a message"
            " that is not the assistant's, such as the system text: the model does not see it; write it into a message"
            " that the template writes"
        )
    if part.get("unwritten_reasoning"):
        yield (
            f"{name}: in {part['unwritten_reasoning']} of {whole} rows the last answer has reasoning in a field of its"
            " own, which the model's chat template does not write: the model does not learn it; write it into the"
            " content"
        )
    if part.get("unprompted"):
        yield (
            f"{name}: in {part['unprompted']} of {whole} rows the last answer does not begin as the template's"
            " generation prompt has it, so `generate` will give the model another prompt; make both agree with"
            " data.template_kwargs"
        )
    if part.get("prompts_cut"):
        prompts = number(part["prompts_cut"], "prompt")
        yield (
            f"{name}: {prompts} longer than data.max_length ({limit}) allows: cut at generation, after the opening"
            " token and the system text"
        )
    if part["straddling"]:
        found = "a token crosses from the prompt into the completion and is not supervised"
        yield f"{name}: in {part['straddling']} of {whole} rows {found}; end the prompt with a space or a line break"
    if part.get("unaligned"):
        yield f"{name}: words without a token of their own: {part['unaligned']}; their tags are ignored"


def _note_reading(name: str, part: dict[str, Any]) -> Iterator[str]:
    if "read_as" in part:
        yield f"{name}: read as {' and '.join(part['read_as'])}; data.format and data.columns change that"
    if part.get("streamed"):
        yield f"{name}: streamed; what is said of its rows is of the first {part['rows']:,}"
    if part.get("empty"):
        yield f"{name}: empty rows skipped: {part['empty']:,}"
    if part.get("bad"):
        yield f"{name}: bad rows skipped, as data.on_error says: {part['bad']:,} ({'; '.join(part['faults'])})"


def _note_ends(name: str, part: dict[str, Any]) -> Iterator[str]:
    if not (part.get("stop_ids") or part.get("stop_texts")):
        yield (
            f"{name}: no answer ends with a supervised end marker, so the model cannot learn to stop; use a chat"
            " template that writes one after each answer, or set evaluation.generation.stop"
        )
    else:
        yield f"{name}: {number(part['unended'], 'answer')} without a supervised end marker"
