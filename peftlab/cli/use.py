"""`peftlab evaluate` and `peftlab generate`: use of a run's trained weights."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peftlab.cli.answer import answers, is_main_process
from peftlab.cli.options import AsJson, Debug, NoVerify, Overrides, RunPath
from peftlab.errors import StorageError, UsageError
from peftlab.quantities import number

if TYPE_CHECKING:
    from peftlab.recipe.schema import Recipe
    from peftlab.reports import Metrics
    from peftlab.runs.requests import Request
    from peftlab.runs.use import RunEvaluation

Output = Annotated[
    Path | None, typer.Option("--output", metavar="FILE", help="Write prompts, answers and their scores as JSON lines.")
]

Prompt = Annotated[str | None, typer.Argument(metavar="PROMPT", help="Text to continue or answer.", show_default=False)]
System = Annotated[str | None, typer.Option("--system", metavar="TEXT", help="System message of a chat.")]
ChatFile = Annotated[
    Path | None, typer.Option("--chat", metavar="FILE", help="JSON file with the messages (and tools) of a chat.")
]
Prompts = Annotated[
    Path | None,
    typer.Option("--prompts", metavar="FILE", help="Prompts: lines of a .txt file, or rows of jsonl, csv, ..."),
]
Tasks = Annotated[
    str | None,
    typer.Option("--tasks", metavar="NAMES", help="Tasks of lm-evaluation-harness instead: names or YAML files, a,b."),
]


class WhichWeights(StrEnum):
    trained = "trained"
    base = "base"
    merged = "merged"


OVERRIDE = re.compile(r"\w+(\.\w+)+=")


@answers
def evaluate(
    run: RunPath,
    overrides: Overrides = None,
    output: Output = None,
    tasks: Tasks = None,
    weights: Annotated[
        WhichWeights, typer.Option("--weights", help="Weights that --tasks evaluates.")
    ] = WhichWeights.trained,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Number of rows of each of --tasks.")] = None,
    shots: Annotated[
        int | None, typer.Option("--shots", min=0, help="Number of examples in each prompt of --tasks.")
    ] = None,
    no_verify: NoVerify = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Any:
    """Evaluate a run's trained weights. Overrides change its recipe, such as data.evaluation=FILE."""
    if tasks is not None:
        return evaluate_tasks(run, tasks, overrides or (), weights, limit, shots, output)
    if limit is not None or shots is not None or weights is not WhichWeights.trained:
        raise UsageError("--limit, --shots and --weights belong to --tasks")
    from peftlab.runs.use import evaluate_run

    found = evaluate_run(run, overrides or (), verify=not no_verify, output=output)
    if output is not None:
        write_rows(output, found.texts)
    for line in found.notes if is_main_process() else ():
        print(f"peftlab: note: {line}", file=sys.stderr)
    answer = {
        "metrics": found.metrics,
        "undefined": found.undefined,
        "signatures": found.signatures,
        "notes": found.notes,
    }
    return {"run": str(run), **answer}, lambda: show_evaluation(found), 0


def evaluate_tasks(
    run: Path,
    tasks: str,
    overrides: Sequence[str],
    weights: WhichWeights,
    limit: int | None,
    shots: int | None,
    output: Path | None,
) -> Any:
    """Evaluate weights of a run on tasks of lm-evaluation-harness."""
    if output is not None:
        raise UsageError("--output is for the run's own rows; --tasks prints its metrics")
    from peftlab.runs.benchmarks import evaluate_tasks as evaluate

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise UsageError("--tasks names no task; see `lm_eval ls tasks`")
    found = evaluate(run, names, overrides, weights=weights, limit=limit, shots=shots)
    return {"run": str(run), "weights": weights.value, "tasks": found}, lambda: show_tasks(found), 0


def show_tasks(found: dict[str, Metrics]) -> None:
    from peftlab.cli.render import plain_table, show
    from peftlab.quantities import format_metric

    table = plain_table("task and metric", "value")
    for task, values in found.items():
        for name, value in values.items():
            table.add_row(f"{task} {name}", format_metric(value))
    show(table)


def show_evaluation(found: RunEvaluation) -> None:
    from peftlab.cli.render import render_metrics, show

    show(render_metrics(found.metrics, found.undefined, found.signatures))


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as lines of JSON. Raises StorageError."""
    from peftlab.files import write_output

    try:
        write_output(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}; name another --output") from None


@answers
def generate(
    run: RunPath,
    prompt: Prompt = None,
    overrides: Overrides = None,
    system: System = None,
    chat: ChatFile = None,
    prompts: Prompts = None,
    output: Output = None,
    no_verify: NoVerify = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Any:
    """Continue or answer prompts with a run's trained weights, rendered as the run's own rows.

    Prompts are the PROMPT, the chat in a file (--chat), or those in a file (--prompts).
    """
    settings = list(overrides or ())
    if prompt is not None and OVERRIDE.match(prompt) and (chat or prompts):
        settings.insert(0, prompt)
        prompt = None
    if sum(given is not None for given in (prompt, chat, prompts)) != 1:
        raise UsageError("give one of a PROMPT, --chat FILE and --prompts FILE; PROMPT comes right after RUN")
    if output is not None:
        from peftlab.files import refuse_output_file

        refuse_output_file(output, [file for file in (chat, prompts) if file is not None])
    from peftlab.runs.generation import generate_all
    from peftlab.runs.requests import ask, read_chat, read_prompts, refuse_unreadable

    if prompt is not None:
        refuse_unreadable(prompt)

    def requests(recipe: Recipe) -> list[Request]:
        if prompts is not None:
            return read_prompts(recipe, prompts, system)
        return [read_chat(recipe, chat, system) if chat is not None else ask(recipe, prompt or "", system)]

    single = prompts is None and not as_json
    found = generate_all(run, requests, settings, verify=not no_verify, watch=print_piece if single else None)
    rows = [{"row": row, "prompt": one.prompt, "output": one.text, "ended": one.ended} for row, one in enumerate(found)]
    if output is not None:
        write_rows(output, rows)
    if cut := sum(one.cut > 0 for one in found):
        print(f"peftlab: note: {cut} of {len(found)} prompts were cut to fit the model's positions", file=sys.stderr)
    if long := sum(one.long for one in found):
        which = f"{long} of {len(found)} prompts" if len(found) > 1 else "the prompt"
        more = "longer than data.max_length, to which evaluation shortens rows" + ("" if cut else ": read whole here")
        print(f"peftlab: note: {which} {'is' if long == 1 else 'are'} {more}", file=sys.stderr)
    if prompts is not None:
        return {"run": str(run), "answers": rows}, lambda: show_answers(rows, output), 0
    answer = {"run": str(run), "prompt": found[0].prompt if prompt is None else prompt, "text": found[0].text}
    return answer, print, 0  # the answer is there already: only its line has to end


def print_piece(text: str) -> None:
    """Print a part of an answer at once."""
    print(text, end="", flush=True)


def show_answers(rows: Sequence[dict[str, Any]], output: Path | None) -> None:
    """Print prompts and answers, or where they have been written."""
    if output is not None:
        print(f"{number(len(rows), 'answer')} in {output}")
        return
    from peftlab.cli.render import render_example, show

    for place, row in enumerate(rows):
        if place:
            print()
        show(render_example({"prompt": row["prompt"], "output": row["output"]}))
