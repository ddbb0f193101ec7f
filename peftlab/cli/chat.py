"""`peftlab chat`: talk to runs and to their base, in a terminal or through a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from peftlab.cli.answer import answers
from peftlab.cli.options import Debug, NoVerify, split_overrides
from peftlab.errors import PeftlabError, UsageError, nearest

if TYPE_CHECKING:
    from peftlab.runs.chat import Conversation

RunPaths = Annotated[
    list[str], typer.Argument(metavar="RUN", help="Directories of runs, and KEY=VALUE overrides for all of them.")
]


class Command(NamedTuple):
    """What a line that begins with / does: its arguments, what `/help` says of it, and the function."""

    arguments: str
    help: str
    run: Callable[[Conversation, str], list[str]]


@answers
def chat(
    runs: RunPaths,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="System message.")] = None,
    side_by_side: Annotated[
        bool, typer.Option("--all", help="Ask all of them, and the base, from the start (as `/use` does later).")
    ] = False,
    lines: Annotated[bool, typer.Option("--json", help="Print each answer as one JSON object on a line.")] = False,
    no_verify: NoVerify = False,
    debug: Debug = False,
) -> Any:
    """Talk to runs. Lines are messages, those that begin with / are commands (/help).

    In a pipe each line is answered on standard output.
    """
    folders, overrides = split_overrides(runs)
    if not folders:
        raise UsageError("name a run's directory")
    from peftlab.runs.chat import open_conversation

    conversation = open_conversation(folders, overrides, system=system, verify=not no_verify)
    if side_by_side:
        conversation.use(list(conversation.runs))
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    code = converse(conversation, pick_screen(conversation, lines, interactive), read_lines(interactive))
    return {}, lambda: None, code if not interactive else 0


def pick_screen(conversation: Conversation, lines: bool, interactive: bool) -> Any:
    """Return what shows answers: as JSON, plainly, or for a terminal."""
    from peftlab.cli.render_chat import JsonScreen, PlainScreen, TerminalScreen

    if lines:
        return JsonScreen(conversation)
    return TerminalScreen(conversation) if interactive else PlainScreen(conversation)


def read_lines(interactive: bool) -> Iterator[str]:
    """Yield the messages: typed ones with a history of lines where there is a terminal."""
    if not interactive:
        yield from (line.rstrip("\r\n") for line in sys.stdin)
        return
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # it gives `input` its history
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return


def converse(conversation: Conversation, screen: Any, lines: Iterator[str]) -> int:
    """Answer every line until there are none or `/quit`; return the exit code, of the last error if there was one."""
    code = 0
    screen.greet()
    for line in lines:
        if not line.strip():
            continue
        try:
            if line.strip() in QUIT:
                break
            if line.startswith("/"):
                screen.note(run_line(conversation, line))
            else:
                screen.answer(line)
        except PeftlabError as error:
            code = error.exit_code
            print(f"peftlab: error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            if not screen.stops_answers:
                raise
            screen.note(["", "stopped; this message and its answer are forgotten"])
    return code


def run_line(conversation: Conversation, line: str) -> list[str]:
    """Run a line that begins with / and return the lines to show. Raises UsageError for an unknown command."""
    name, _, rest = line.strip().partition(" ")
    if name not in COMMANDS:
        raise UsageError(f"{name}: no such command{nearest(name, COMMANDS)}; /help lists them")
    return COMMANDS[name].run(conversation, rest.strip())


def show_help(conversation: Conversation, rest: str) -> list[str]:
    names = [f"{name} {command.arguments}".rstrip() for name, command in COMMANDS.items()]
    width = max(map(len, names))
    return [f"{name:{width}}  {command.help}" for name, command in zip(names, COMMANDS.values(), strict=True)]


def set_system(conversation: Conversation, text: str) -> list[str]:
    conversation.set_system(text or None)
    return [f"system: {text}" if text else "no system message"]


def reset(conversation: Conversation, rest: str) -> list[str]:
    conversation.reset()
    return ["the conversation begins again"]


def list_runs(conversation: Conversation, rest: str) -> list[str]:
    return [describe_run(conversation, name) for name in conversation.runs]


def describe_run(conversation: Conversation, name: str) -> str:
    """Return one line of `/runs`: a mark for those that answer, name, method or base, format."""
    run = conversation.runs[name]
    mark = "*" if name in conversation.active else " "
    what = run.recipe.model.name if run.is_base else run.recipe.method.title
    return f"{mark} {name}: {what}, {run.recipe.data.format}"


def use(conversation: Conversation, rest: str) -> list[str]:
    names = rest.replace(",", " ").split()
    conversation.use(list(conversation.runs) if names == ["all"] else names)
    return [f"answering: {', '.join(conversation.active)}"]


def change(conversation: Conversation, rest: str) -> list[str]:
    conversation.change(rest.split())
    settings = {**conversation.describe_settings(), "stop": ", ".join(map(repr, conversation.settings.stop))}
    return ["  ".join(f"{name}={value}" for name, value in settings.items())]


def save(conversation: Conversation, rest: str) -> list[str]:
    if not rest:
        raise UsageError("/save needs the name of a file")
    count = conversation.save(Path(rest).expanduser())
    return [f"{count} conversation{'s' if count > 1 else ''} in {rest}"]


QUIT = ("/quit", "/exit")
COMMANDS = {
    "/help": Command("", "these commands", show_help),
    "/runs": Command("", "what can answer; * marks what does", list_runs),
    "/use": Command("NAME ...", "what answers: a run, the base, several, or all", use),
    "/system": Command("[TEXT]", "begin each chat with this text; without one, with none", set_system),
    "/set": Command("[NAME=VALUE ...]", "temperature, top_p, max_new_tokens, beams, stop, seed", change),
    "/reset": Command("", "forget what was said", reset),
    "/save": Command("FILE", "write the conversations as rows of data.format: chat", save),
    "/quit": Command("", "end (also Ctrl-D)", reset),
}
