"""Command lines of TRL's SFT script as keys and values: `trl sft --...`, `accelerate launch .../sft.py --...`."""

from __future__ import annotations

import re
import shlex
from typing import Any

from peftlab.errors import UsageError
from peftlab.recipe.yaml_source import parse_scalar

LIMIT_DEPTH = 5
PROCESSES = "num_processes"
COMMAND = re.compile(r"(^|[\s/])(trl\s+(\w+)|(\w*)\.py)(\s|$)")
OTHERS = ("dpo", "grpo", "kto", "ppo", "reward", "rloo", "orpo", "cpo", "gkd")
ASSIGNMENT = re.compile(r"^\s*(?:export\s+)?([A-Za-z_]\w*)=(\S.*)$", re.MULTILINE)
PROCESS_OPTION = re.compile(r"--(?:num_processes|nproc_per_node|nproc-per-node)[= ](\d+)")
# torchrun counts the processes of one machine, accelerate those of all.
MACHINES = re.compile(r"(?<!\w)--nnodes[= ](\d+)")
LEFT = re.compile(r"\$[@*#(0-9{]|`")


def parse_command(text: str) -> dict[str, Any]:
    """Return the arguments of the one SFT command in a shell script, numbers and flags as such.

    A variable is replaced if the script assigns it. Raises UsageError where there is no such command.
    """
    text = "\n".join(line for line in text.replace("\\\n", " ").splitlines() if not line.lstrip().startswith("#"))
    found = [line for line in text.splitlines() if COMMAND.search(line) and "--" in line]
    if len(found) != 1:
        number = "no" if not found else f"{len(found)}"
        raise UsageError(f"{number} commands of TRL here; a file needs one such as `trl sft --model_name_or_path ...`")
    line = replace_variables(found[0], dict(ASSIGNMENT.findall(text)))
    match = COMMAND.search(line)
    assert match is not None
    script = match[3] or match[4]
    if script.lower() in OTHERS:
        raise UsageError(f"`{match[2]}`: peftlab does supervised fine-tuning only")
    values = pair_up(split(line[match.end() :]))
    if processes := PROCESS_OPTION.search(line[: match.start()]):
        machines = MACHINES.search(line[: match.start()])
        values[PROCESSES] = int(processes[1]) * (int(machines[1]) if machines else 1)
    return values


def split(text: str) -> list[str]:
    try:
        return shlex.split(text, comments=True)
    except ValueError as error:
        raise UsageError(f"the command cannot be read: {error}") from None


def replace_variables(line: str, known: dict[str, str]) -> str:
    """Return a command with the values of its variables. Raises UsageError for what only a shell can say."""

    def value_of(match: re.Match[str]) -> str:
        name = match[1] or match[3]
        if name not in known and match[2] is None:
            raise UsageError(f"${name} has no value in this file; write the value")
        return known.get(name, match[2] or "").partition(" #")[0].strip().strip("\"'")

    for _ in range(LIMIT_DEPTH):  # a value may have variables of its own
        line = re.sub(r"\$(?:\{([A-Za-z_]\w*)(?::?-([^}]*))?\}|([A-Za-z_]\w*))", value_of, line)
    if left := LEFT.search(line):
        raise UsageError(f"the command has {left[0]!r}, whose value only a shell knows; write the value")
    return line


def pair_up(words: list[str]) -> dict[str, Any]:
    """Return options with their values: none is a flag, several are a list; names may have hyphens."""
    values: dict[str, Any] = {}
    name = ""
    for word in words:
        if word in (";", "&&", "|", "&") or word.startswith((">", "2>")):
            break
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            values[name] = [parse_scalar(value)] if equals else []
        elif name:
            values[name].append(parse_scalar(word))
        else:
            raise UsageError(f"the command has {word!r} where an option is expected")
    return {
        name.removeprefix("no_") if not given else name: value_of_option(name, given) for name, given in values.items()
    }


def value_of_option(name: str, given: list[Any]) -> Any:
    """Return the value of an option: none turns it on, or off where its name begins with `no_`."""
    if not given:
        return not name.startswith("no_")
    return given[0] if len(given) == 1 else tuple(given)
