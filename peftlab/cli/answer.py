"""The output of a command: tables or one JSON object, one line for each error, and the exit code."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peftlab.errors import MissingRequirementError, PeftlabError, Problem, RecipeError, StorageError, UsageError
from peftlab.secrets import mask_secrets

KEY_PATH = re.compile(r"((?:model|method|data|training|evaluation|run)(?:\.\w+)*): ")
FAULT = 1
INTERRUPTED = 130


def answers(command: Callable[..., Any]) -> Callable[..., None]:
    """Make a function a command: print its result; turn its errors into lines and an exit code.

    The function returns (answer, show, exit code): `answer` is the JSON object for `as_json`, `show` a function
    that prints the same as text.
    """

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        import typer

        as_json, debug = arguments.get("as_json", False), arguments.get("debug", False)
        code = run_command(lambda: command(**arguments), as_json, debug)
        if code:
            raise typer.Exit(code)

    return run


def run_command(command: Callable[[], Any], as_json: bool, debug: bool) -> int:
    """Run a command, print its result or error, and return the exit code."""
    try:
        refuse_deleted_folder()
        with stdout_to_stderr() if as_json else contextlib.nullcontext():
            answer, show, code = command()
    except KeyboardInterrupt:
        print("peftlab: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of an answer that is printed as it comes has ended
        raise
    except Exception as error:
        return print_error(error, as_json, debug)
    if is_main_process():
        with contextlib.suppress(BrokenPipeError):  # a reader that has ended changes nothing of what was found
            print_json(answer) if as_json else show()
    return code


def refuse_deleted_folder() -> None:
    """Raise StorageError where the current folder is gone: relative paths name nothing, and torch ends the process."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise StorageError(
            "the current folder no longer exists; change to another one with cd, and try again"
        ) from None


def print_error(error: Exception, as_json: bool, debug: bool) -> int:
    """Print an error on one line, or one line for each problem of a recipe; return its exit code."""
    if debug:
        print_line(mask_secrets("".join(traceback.format_exception(error)).rstrip()))
    code = error.exit_code if isinstance(error, PeftlabError) else FAULT
    # Every process of a launch raises these; one of them is enough.
    if isinstance(error, PeftlabError) and error.reported:
        return code
    if isinstance(error, RecipeError | UsageError) and not is_main_process():
        return code
    # What a machine lacks, all of its processes lack.
    if isinstance(error, MissingRequirementError) and os.environ.get("LOCAL_RANK", "0") != "0":
        return code
    message = str(error) if isinstance(error, PeftlabError) else describe_fault(error)
    lines = [mask_secrets(line) for line in message.splitlines()]
    for line in lines:
        print_line(f"peftlab: error: {line}")
    if as_json and is_main_process():
        problems = [problem_json(problem) for problem in getattr(error, "problems", [])]
        with contextlib.suppress(BrokenPipeError):
            print_json(
                {"error": {"kind": type(error).__name__, "exit_code": code, "lines": lines, "problems": problems}}
            )
    return code


def print_line(text: str) -> None:
    """Print a line to standard error; where that is a full disk or closed, the exit code alone says what happened."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # or Python would try again at its end, and exit with 120


def problem_json(problem: Problem) -> dict[str, Any]:
    """Return a problem as JSON, with secrets masked."""
    return asdict(problem) | {"message": mask_secrets(problem.message)}


@contextlib.contextmanager
def error_places(recipe: str | Path, overrides: Sequence[str]) -> Iterator[None]:
    """Add the recipe's file and line to every line of an error that begins with a key path; a model has no lines."""
    try:
        yield
    except RecipeError:
        raise
    except PeftlabError as error:
        from peftlab.recipe.load import is_recipe_file, place_of

        if not is_recipe_file(str(recipe)):
            raise
        lines = str(error).splitlines()
        keys = [KEY_PATH.match(line) for line in lines]
        placed = [
            f"{place_of(recipe, overrides, key[1])}: {line}" if key else line
            for key, line in zip(keys, lines, strict=True)
        ]
        error.args = ("\n".join(placed),)
        raise


def describe_fault(error: Exception) -> str:
    """Return the line for an unexpected error."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message} (a fault in peftlab; --debug shows the traceback; please report it)"


def print_json(answer: dict[str, Any]) -> None:
    """Print one JSON object; NaN and infinity, which JSON lacks, become null."""
    from pydantic_core import to_json

    print(to_json(answer, indent=2, inf_nan_mode="null", fallback=str).decode())


def is_main_process() -> bool:
    """Whether this is process 0 of a launch, the only one that prints."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Redirect standard output to standard error, also that of libraries and child processes."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
