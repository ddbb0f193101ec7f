"""The commands of `peftlab`, its exit codes, and the run of one command line."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from peftlab import __version__
from peftlab.cli.answer import INTERRUPTED, print_error
from peftlab.cli.budget import budget
from peftlab.cli.cache import cache
from peftlab.cli.chat import chat
from peftlab.cli.check import check, schema
from peftlab.cli.compare import compare
from peftlab.cli.compare_weights import compare_weights
from peftlab.cli.convert import convert
from peftlab.cli.data import data
from peftlab.cli.docs import docs
from peftlab.cli.export import export
from peftlab.cli.import_ import import_
from peftlab.cli.inspection import doctor, params
from peftlab.cli.launch import launch
from peftlab.cli.merge import merge
from peftlab.cli.plan import plan
from peftlab.cli.predict import predict
from peftlab.cli.push import push
from peftlab.cli.report import report
from peftlab.cli.reproduce import reproduce
from peftlab.cli.runs import runs
from peftlab.cli.study import study
from peftlab.cli.training import train, verify_resume
from peftlab.cli.use import evaluate, generate
from peftlab.cli.verification import verify
from peftlab.errors import EXIT_CODES, UsageError

# Any: the class is click's in older versions of typer and typer's own in newer ones.
CommandLineError: Any = typer.BadParameter.__base__

EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())

app = typer.Typer(
    name="peftlab",
    help="One bench for parameter-efficient fine-tuning: a YAML recipe chooses between full fine-tuning, LoRA, "
    "QLoRA, bottleneck adapters, prefix tuning and BitFit; peftlab trains, counts, evaluates and compares.",
    epilog=EPILOG,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    check,
    convert,
    data,
    plan,
    budget,
    train,
    launch,
    params,
    evaluate,
    generate,
    chat,
    predict,
    merge,
    export,
    compare_weights,
    push,
    compare,
    report,
    study,
    verify,
    verify_resume,
    reproduce,
    schema,
    docs,
    cache,
    doctor,
):
    app.command()(command)
app.command("import")(import_)  # a word of Python's, so that no function can have its name
app.add_typer(runs)


def show_version(wanted: bool) -> None:
    if wanted:
        print(f"peftlab {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def run(arguments: Sequence[str]) -> int:
    """Run one command line; return its exit code: 0 where the reader of an output, such as `head`, ended before it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    code = 0
    try:
        code = run_line(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output()
    except SystemExit as error:
        if not isinstance(error.__context__, BrokenPipeError):  # of which the library of the command line makes 1
            raise
        discard_output()
    return code


def run_line(arguments: Sequence[str]) -> int:
    try:
        return app(args=list(arguments), prog_name="peftlab", standalone_mode=False) or 0
    except CommandLineError as error:
        advice = f"see `{error.ctx.command_path} --help`" if error.ctx else "see `peftlab --help`"
        # pydantic checks the values of options, and begins so what a type of ours refuses
        message = f"{error.format_message().replace('Value error, ', '').rstrip('.')}; {advice}"
        return print_error(UsageError(message), as_json="--json" in arguments, debug="--debug" in arguments)
    except typer.Abort:
        return INTERRUPTED


def discard_output() -> None:
    """Write what is left of the output nowhere, or Python would fail to write it when it ends."""
    sys.stdout = sys.__stdout__
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    if isinstance(sys.stderr, io.TextIOWrapper):
        os.dup2(nowhere, 2)
