"""`peftlab runs`: the runs below a folder, listed, compared, tagged, cleaned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peftlab.cli.answer import answers
from peftlab.cli.options import AsJson, Debug, RunPath

if TYPE_CHECKING:
    from rich.console import RenderableType

    from peftlab.runs.catalogue import Entry, Removal

Root = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to search for runs.")]
Where = Annotated[
    list[str] | None,
    typer.Option("--where", metavar="KEY=VALUE", help="Only runs with this value: method.type=lora, metric<2, ..."),
]
Sort = Annotated[str | None, typer.Option("--sort", metavar="KEY", help="Order by this value: metric, peak_bytes, ...")]
Descending = Annotated[bool, typer.Option("--descending", help="Largest value first.")]

runs = typer.Typer(
    name="runs", help="List, compare, tag and clean runs.", rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


@runs.callback(invoke_without_command=True)
def root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@runs.command("list")
@answers
def list_runs(
    folder: Root = Path("runs"),
    where: Where = None,
    sort: Sort = None,
    descending: Descending = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Any:
    """List runs: method, trainable parameters, metric, memory, seconds, state."""
    from peftlab.runs import catalogue

    entries = catalogue.select(catalogue.find_runs(folder), where or ())
    if sort is not None:
        entries = catalogue.sort(entries, sort, descending)
    return {"runs": [entry.values for entry in entries]}, lambda: show_runs(entries, folder), 0


@runs.command("diff")
@answers
def diff(first: RunPath, second: RunPath, as_json: AsJson = False, debug: Debug = False) -> Any:
    """Show in which fields and results two runs differ."""
    from peftlab.runs.catalogue import compare_two, read_entry
    from peftlab.runs.directory import RunDirectory

    entries = [read_entry(RunDirectory.open(path).path) for path in (first, second)]
    recipes, results = compare_two(*entries)
    return {"recipe": recipes, "results": results}, lambda: show_differences(entries, recipes, results), 0


@runs.command("tag")
@answers
def tag(
    run: RunPath,
    tags: Annotated[list[str], typer.Argument(metavar="TAG", help="Tags.", show_default=False)],
    remove: Annotated[bool, typer.Option("--remove", help="Remove the tags instead of adding them.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Any:
    """Add tags to a run; `list --where tags=TAG` finds it."""
    from peftlab.runs.catalogue import change_tags

    present = change_tags(run, tags, remove)
    return {"run": str(run), "tags": list(present)}, lambda: print(f"{run}: {', '.join(present) or 'no tags'}"), 0


@runs.command("clean")
@answers
def clean(
    folder: Root = Path("runs"),
    where: Where = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this it is only listed.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Any:
    """List or remove checkpoints of finished runs, and runs that ended before they saved anything."""
    from peftlab.runs import catalogue

    removals = catalogue.find_removable(catalogue.select(catalogue.find_runs(folder), where or ()))
    if yes:
        catalogue.remove(removals)
    answer = [{"path": str(one.path), "what": one.what, "bytes": one.bytes} for one in removals]
    return {"removed": yes, "found": answer}, lambda: show_removals(removals, yes), 0


def show_runs(entries: Sequence[Entry], folder: Path) -> None:
    from peftlab.cli.render import show

    if not entries:
        print(f"no such runs below {folder}")
        return
    show(render_runs(entries, folder))
    for entry in entries:
        if entry.fault:
            print(f"note: {entry.fault}")


def render_runs(entries: Sequence[Entry], folder: Path) -> RenderableType:
    """Return one line for each run; the metric is its recipe's first, and named once where all have the same one.

    States are shown where one is not `finished`.
    """
    from peftlab.cli.render import plain_table
    from peftlab.quantities import format_bytes, format_count, format_metric, format_seconds

    formats = {"trainable": format_count, "peak_bytes": format_bytes, "seconds": format_seconds}
    states = {entry.state for entry in entries} != {"finished"}
    metrics = {entry.metric for entry in entries}
    title = metrics.pop() if len(metrics) == 1 else "metric"
    table = plain_table("run", "method", "trainable", title, "peak", "seconds", *(["state"] if states else []))
    table.padding = (0, 1, 0, 0)
    for column in table.columns[1:]:
        column.no_wrap = True
    table.columns[1].justify = "left"
    if states:
        table.columns[-1].justify = "left"
    for entry in entries:
        values = entry.values
        trainable, peak, seconds = (
            "-" if values.get(key) is None else format_(values[key]) for key, format_ in formats.items()
        )
        name = entry.path.relative_to(folder).as_posix() if entry.path != folder else entry.path.name
        tagged = f"{name} ({', '.join(entry.tags)})" if entry.tags else name
        value = format_metric(values.get("metric"))
        metric = value if title == entry.metric else f"{entry.metric} {value}"
        state = [entry.state.replace("_", " ")] if states else []
        table.add_row(tagged, str(values.get("method.type", "-")), trainable, metric, peak, seconds, *state)
    return table


def show_differences(
    entries: Sequence[Entry], recipes: dict[str, tuple[Any, Any]], results: dict[str, tuple[Any, Any]]
) -> None:
    from rich.text import Text

    from peftlab.cli.render import plain_table, show

    table = plain_table("recipe", *(entry.path.as_posix() for entry in entries), right=False)
    for title, found in (("recipe", recipes), ("result", results)):
        if title == "result":
            table.add_row()
            table.add_row(Text(title, style="bold"))
        for key, pair in found.items():
            table.add_row(key, *(describe_value(key, value) for value in pair))
        if not found:
            table.add_row("no difference")
    show(table)


def describe_value(key: str, value: Any) -> str:
    """Return a value as a person reads it: bytes in units, numbers with separators, `true` as recipes write it."""
    from peftlab.quantities import format_bytes, format_seconds

    if value is None:
        return "-"
    if key == "seconds":
        return format_seconds(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return format_bytes(value) if key.endswith("_bytes") else f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def show_removals(removals: Sequence[Removal], removed: bool) -> None:
    from peftlab.quantities import format_bytes

    for one in removals:
        print(f"{format_bytes(one.bytes):>10}  {one.path}  ({one.what})")
    total = format_bytes(sum(one.bytes for one in removals))
    if not removals:
        print("nothing to remove")
    else:
        print(f"{total} removed" if removed else f"{total} can be removed; --yes removes it")
