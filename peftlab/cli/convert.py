"""`peftlab convert`: configurations of other trainers as recipes, without torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peftlab.cli.answer import answers, problem_json
from peftlab.cli.options import AsJson, Debug
from peftlab.errors import RecipeError, StorageError, UsageError
from peftlab.secrets import mask_secrets

if TYPE_CHECKING:
    from peftlab.conversion.convert import Conversion
    from peftlab.conversion.sheet import Line

File = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="Configuration of axolotl, LLaMA-Factory, TRL (YAML or a shell command), torchtune or PEFT.",
        show_default=False,
    ),
]
Kind = Annotated[
    str | None,
    typer.Option("--kind", help="axolotl, llama-factory, trl, torchtune or peft (default: recognised by its keys)."),
]
Output = Annotated[Path | None, typer.Option("--output", help="File to write (default: standard output).")]


@answers
def convert(file: File, kind: Kind = None, output: Output = None, as_json: AsJson = False, debug: Debug = False) -> Any:
    """Convert another trainer's configuration to a recipe, and report what became of each key."""
    from peftlab.conversion.convert import convert as convert_file

    if output is not None and output.exists():
        raise UsageError(f"--output {output}: exists already; name a new file")
    made = convert_file(file, kind)
    if output is not None:
        write_new(output, made.text)
    code = RecipeError.exit_code if made.problems else 0
    return as_answer(made, output), lambda: show(made, output), code


def write_new(path: Path, text: str) -> None:
    """Write a file that does not exist. Raises StorageError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise StorageError(f"--output {path}: cannot be written: {error.strerror or error}") from None


def as_answer(made: Conversion, output: Path | None) -> dict[str, Any]:
    return {
        "ok": not made.problems,
        "kind": made.peer.name,
        "output": None if output is None else str(output),
        "recipe": made.recipe,
        "text": mask_secrets(made.text),
        "keys": [line_json(line) for line in made.lines],
        "notes": made.notes,
        "problems": [problem_json(problem) for problem in made.problems],
    }


def line_json(line: Line) -> dict[str, Any]:
    return {
        "key": line.key,
        "value": mask_secrets(line.value) if isinstance(line.value, str) else line.value,
        "fate": line.fate.value,
        "text": line.text,
        "line": line.line,
    }


def show(made: Conversion, output: Path | None) -> None:
    """Print the recipe on standard output, unless it is in a file, and what became of each key on standard error."""
    from peftlab.conversion.sheet import Fate

    print(f"{made.peer.title}:", file=sys.stderr)
    for fate in Fate:
        print_group(fate.value, [str(line) for line in made.lines if line.fate is fate])
    print_group("note", made.notes)
    print_group("to do before it can run", [str(problem) for problem in made.problems])
    if output is None:
        print(mask_secrets(made.text), end="")
    else:
        print(f"wrote {output}")


def print_group(title: str, lines: Sequence[str]) -> None:
    if lines:
        print(f"\n{title}", file=sys.stderr)
    for line in lines:
        print(mask_secrets(f"  {line}"), file=sys.stderr)
