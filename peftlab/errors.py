"""The errors that a user can cause or meet: one class and one exit code for each kind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

EXIT_CODES = {
    0: "success",
    1: "a fault in peftlab (please report it; --debug shows the traceback)",
    2: "the recipe or the command line is wrong",
    3: "the model cannot be found, read or built",
    4: "the data cannot be found, read or used",
    5: "the method cannot be applied to this model",
    6: "training diverged: a loss or gradient is not finite",
    7: "out of memory",
    8: "the run directory, a checkpoint or an adapter cannot be read or written",
    9: "a library or device that this recipe needs is missing",
    10: "at least one run of a comparison failed",
    11: "stopped early, as the recipe asked; train --resume resumes it",
    12: "another process of the launch died; train --resume resumes it",
    130: "interrupted from the keyboard (SIGINT)",
    138: "asked to end by a cluster (SIGUSR1); train --resume resumes it",
    143: "terminated (SIGTERM)",
}


class PeftlabError(Exception):
    """An expected error; its message is one line that says what is wrong, where, and what to do.

    `reported` is whether another process of the launch shows it, or the error that caused it.
    """

    exit_code = 1
    reported = False


@dataclass(frozen=True)
class Problem:
    """One fault in a recipe: key path, what is wrong, and where (line is 1-based, None if unknown)."""

    path: str
    message: str
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.file and self.line else f"{self.file}: " if self.file else ""
        return f"{place}{self.path + ': ' if self.path else ''}{self.message}"


class RecipeError(PeftlabError):
    """All problems of one recipe, one line each."""

    exit_code = 2

    def __init__(self, problems: list[Problem] | str):
        self.problems = [Problem("", problems)] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class UsageError(PeftlabError):
    exit_code = 2


class ModelError(PeftlabError):
    exit_code = 3


class DataError(PeftlabError):
    exit_code = 4


class MethodError(PeftlabError):
    exit_code = 5


class DivergedError(PeftlabError):
    exit_code = 6


class OutOfMemoryError(PeftlabError):
    exit_code = 7


class StorageError(PeftlabError):
    exit_code = 8


class MissingRequirementError(PeftlabError):
    exit_code = 9


class ComparisonError(PeftlabError):
    exit_code = 10


class LaunchError(PeftlabError):
    """Other processes of this launch ended while this one needed them; `lost` has their numbers."""

    exit_code = 12

    def __init__(self, message: str, lost: list[int]):
        super().__init__(message)
        self.lost = lost


class StoppedError(PeftlabError):
    """A run saved a checkpoint and ended before its last step; after a signal the exit code is 128 + its number."""

    exit_code = 11

    def __init__(self, message: str, signal: int | None = None):
        super().__init__(message)
        if signal is not None:
            self.exit_code = 128 + signal


def one_line(text: object, characters: int = 300) -> str:
    """Return a text, or an error's message, as one printable line of limited length."""
    line = " ".join(str(text).split())
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    return line if len(line) <= characters else line[: characters - 3] + "..."


def listed(names: Iterable[object], most: int = 20) -> str:
    """Return names as one line of limited length: `a, b, c and 7 more`."""
    shown = [one_line(name, 60) or repr(name) for name in names]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def nearest(name: object, known: Iterable[object]) -> str:
    """Return `; did you mean 'x'?` for the closest known name, or the empty string."""
    from difflib import get_close_matches

    close = get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
