"""`peftlab compare`: recipes, or a comparison's file, run against each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peftlab.cli.answer import answers
from peftlab.cli.options import AsJson, Debug, Overwrite, split_overrides
from peftlab.errors import ComparisonError, UsageError, one_line

if TYPE_CHECKING:
    from peftlab.comparison.rows import Table
    from peftlab.comparison.variants import Settings
    from peftlab.recipe.comparison import Comparison, Variant
    from peftlab.recipe.space import Search

Sources = Annotated[
    list[str],
    typer.Argument(metavar="RECIPE", help="Recipe files, or one comparison file; KEY=VALUE overrides for all of them."),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", metavar="FOLDER", help="Folder of the comparison (default: runs/comparison or runs/NAME)."
    ),
]
Budgets = Annotated[
    list[str] | None,
    typer.Option(
        "--budget", metavar="BUDGET", help="Size every variant for it: trainable=0.5%, memory=8GiB (repeatable)."
    ),
]
FrontierText = Annotated[
    str | None,
    typer.Option(
        "--frontier", metavar="KIND=LOW..HIGH", help="Sizes between two budgets, drawn as curves: trainable=10k..10M."
    ),
]
Seeds = Annotated[int | None, typer.Option("--seeds", min=1, help="How many seeds (default 3).")]
Rates = Annotated[
    str | None,
    typer.Option(
        "--rates", metavar="A,B,...", help="Learning rates to try (default: 0.3, 1 and 3 times the recipe's)."
    ),
]
NoSweep = Annotated[bool, typer.Option("--no-sweep", help="Use each recipe's own learning rate only.")]
MetricName = Annotated[
    str | None,
    typer.Option("--metric", help="Metric that chooses and is reported (default: loss; accuracy for classifiers)."),
]
SearchKeys = Annotated[
    list[str] | None,
    typer.Option(
        "--search",
        metavar="KEY=VALUES",
        help="Search a key too: KEY=LOW..HIGH, KEY=xLOW..xHIGH:log (times each recipe's own), KEY=A,B (repeatable).",
    ),
]
Trials = Annotated[int | None, typer.Option("--trials", min=1, help="With --search: the most trials of a variant.")]
SearchSeconds = Annotated[
    float | None,
    typer.Option("--search-seconds", metavar="S", help="With --search: a variant starts no trial after S seconds."),
]
SearchProcessorSeconds = Annotated[
    float | None,
    typer.Option("--search-processor-seconds", metavar="S", help="With --search: the same in seconds of processors."),
]
Stopping = Annotated[
    str | None,
    typer.Option("--stopping", metavar="RULE", help="With --search: asha (default), hyperband or none."),
]
TimeLimit = Annotated[
    float | None,
    typer.Option("--time-limit", metavar="SECONDS", help="End a run that takes longer; it counts as failed."),
]
Jobs = Annotated[int, typer.Option("--jobs", min=1, help="How many runs at once on this machine.")]
Devices = Annotated[
    str | None,
    typer.Option("--devices", metavar="LIST", help="Run on these CUDA devices, one run on each at a time: 0-7, 0,2."),
]
Cluster = Annotated[
    str | None, typer.Option("--cluster", metavar="NAME", help="Submit runs through submitit: slurm, or local.")
]
ClusterOptions = Annotated[
    list[str] | None,
    typer.Option("--cluster-option", metavar="KEY=VALUE", help="A parameter of submitit, such as timeout_min=60."),
]

PowerOf = Annotated[
    float | None,
    typer.Option(
        "--power", metavar="D", help="Run nothing; show how many seeds and test rows detect a difference of D."
    ),
]
Spread = Annotated[
    str | None,
    typer.Option(
        "--spread", metavar="seed=A,row=B,rows=N", help="With --power: standard deviations that you expect, test rows."
    ),
]

# The options that set a field of `Search` of another name.
OPTION_OF = {"seconds": "search-seconds", "processor_seconds": "search-processor-seconds"}


@answers
def compare(
    sources: Sources,
    output: Output = None,
    budgets: Budgets = None,
    frontier: FrontierText = None,
    seeds: Seeds = None,
    rates: Rates = None,
    no_sweep: NoSweep = False,
    search: SearchKeys = None,
    trials: Trials = None,
    search_seconds: SearchSeconds = None,
    search_processor_seconds: SearchProcessorSeconds = None,
    stopping: Stopping = None,
    metric: MetricName = None,
    time_limit: TimeLimit = None,
    jobs: Jobs = 1,
    devices: Devices = None,
    cluster: Cluster = None,
    cluster_options: ClusterOptions = None,
    power: PowerOf = None,
    spread: Spread = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Any:
    """Compare recipes by tuned settings, seeds and budgets. The same command resumes a comparison that was stopped."""
    if no_sweep and rates:
        raise UsageError("--no-sweep tries no other learning rate, and --rates names some; give one of them")
    if budgets and frontier:
        raise UsageError("--frontier names the budgets itself; leave out --budget")
    if time_limit is not None and not 0 < time_limit < float("inf"):
        raise UsageError(f"--time-limit {time_limit:g}: must be a number of seconds greater than 0")
    if devices is not None:
        if jobs > 1 or cluster:
            raise UsageError("--devices runs one at a time on each device here; leave out --jobs and --cluster")
        jobs = use_devices(devices)
    if spread is not None and power is None:
        raise UsageError("--spread is used with --power only")
    if power is not None:
        run_alone = {"--budget": budgets, "--frontier": frontier, "--seeds": seeds, "--rates": rates}
        run_alone |= {"--no-sweep": no_sweep, "--search": search, "--cluster": cluster, "--overwrite": overwrite}
        if ignored := [name for name, value in run_alone.items() if value]:
            raise UsageError(f"--power runs nothing and plans the seeds itself; leave out {', '.join(ignored)}")
    file, variants, folder = read_sources(sources)
    if power is not None:
        from peftlab.cli.power import plan_power
        from peftlab.comparison.variants import choose_metric

        named = metric or (file.metric if file else None)
        if named or spread:  # otherwise it is that of the comparison that was run
            named = choose_metric([one.recipe for one in variants], named)
        return plan_power(power, spread, output or folder, len(variants), named)
    caps = {
        "trials": trials,
        "seconds": search_seconds,
        "processor_seconds": search_processor_seconds,
        "stopping": stopping,
    }
    searched = make_search(file, search or [], {name: cap for name, cap in caps.items() if cap is not None}, variants)
    if searched and (rates or no_sweep):
        raise UsageError("a search is in place of --rates and --no-sweep; give one of them")
    given = {
        "budgets": tuple(budgets) if budgets else None,
        "frontier": frontier,
        "seeds": tuple(range(seeds)) if seeds else None,
        "rates": parse_rates(rates) if rates else None,
        "rate_factors": (1.0,) if no_sweep else None,
        "search": searched,
        "metric": metric,
        "time_limit": time_limit,
        "jobs": jobs,
        "cluster": cluster,
        "cluster_options": parse_options(cluster_options or []),
    }
    output = output or folder
    if cluster is None and (overwrite or not output.exists()):
        prepare_runs()
    settings = make_settings(file, given)
    from peftlab.comparison.lab import compare as run_comparison
    from peftlab.comparison.rows import read_table

    report = run_comparison(variants, settings, output, name=output.name, overwrite=overwrite)
    table = read_table(output)
    good = all(trial.status == "finished" for variant in report.variants for trial in variant.trials)
    good = good and all(variant.trials for variant in report.variants)
    page, answers, groups, where = write_page(output)
    answer = {
        "ok": good,
        "folder": str(output),
        "page": page,
        "answer": answers,
        "groups": groups,
        "comparison": report.model_dump(),
        "runs": {one.report.run: one.result.model_dump() for _, one, _ in table.trials() if one.result},
    }
    lines = [*groups, f"all files are in {output}", where]
    return answer, lambda: show_comparison(table, answers, lines), 0 if good else ComparisonError.exit_code


def use_devices(text: str) -> int:
    """Let this process and its runs see the named CUDA devices alone, and return how many they are."""
    from peftlab.runs.jobs import choose_devices

    chosen = choose_devices(text)
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)
    return len(chosen)


def prepare_runs() -> None:
    """Start what runs are forked from: it imports their libraries beside this process's own imports."""
    from peftlab.runs.jobs import list_cuda_devices, start_server

    if not list_cuda_devices():
        start_server()


def read_sources(arguments: list[str]) -> tuple[Comparison | None, list[Variant], Path]:
    """Return a comparison's file if one is named, what is compared, and the default folder."""
    paths, overrides = split_overrides(arguments)
    if not paths:
        raise UsageError("name at least one recipe file to compare")
    from peftlab.recipe.comparison import list_variants, load_comparison
    from peftlab.recipe.load import is_comparison

    files = [path for path in paths if is_comparison(path)]
    if not files:
        return None, list_variants(paths, overrides), Path("runs/comparison")
    if len(paths) > 1:
        raise UsageError(f"{files[0]} is a whole comparison; name only overrides with it")
    comparison, variants = load_comparison(files[0], overrides)
    return comparison, variants, Path("runs") / files[0].stem


def make_settings(file: Comparison | None, given: dict[str, Any]) -> Settings:
    """Return the settings of the command line, with those of the file where it gives none."""
    from peftlab.comparison.variants import Settings
    from peftlab.recipe.budget import parse_budget, parse_frontier

    settings: dict[str, Any] = {}
    if file is not None:
        seeds = tuple(range(file.seeds)) if isinstance(file.seeds, int) else file.seeds
        settings = {"budgets": file.budgets, "seeds": seeds, "rates": file.rates, "metric": file.metric}
        settings["frontier"] = None if given["budgets"] else file.frontier
        settings |= {"rate_factors": file.rate_factors, "rate_extensions": file.rate_extensions}
        settings["time_limit"] = file.time_limit
    settings |= {name: value for name, value in given.items() if value is not None}
    if given["rate_factors"]:
        settings["rates"] = None
    if frontier := settings.get("frontier"):
        with option_errors("--frontier"):
            settings["budgets"] = parse_frontier(frontier)
    with option_errors("--budget"):
        settings["budgets"] = tuple(dict.fromkeys(str(parse_budget(text)) for text in settings.get("budgets", ())))
    return Settings(**settings)


@contextmanager
def option_errors(option: str) -> Iterator[None]:
    """Name the option at the beginning of the errors of its value; those of a file are found when it is read."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{option}: {error}") from None


def make_search(
    file: Comparison | None, keys: list[str], caps: dict[str, Any], variants: list[Variant]
) -> Search | None:
    """Return the search of the file and the command line, which adds keys and replaces caps. Raises UsageError."""
    from pydantic import ValidationError

    from peftlab.recipe.comparison import check_shared_space
    from peftlab.recipe.space import Search, parse_dimension

    given = dict(map(parse_dimension, keys))
    known = file.search if file else None
    if known is None and not given:
        if caps:
            raise UsageError("--trials, --search-seconds, --search-processor-seconds and --stopping need a --search")
        return None
    if faults := check_shared_space(given, variants):
        raise UsageError("; ".join(f"--search {key}: {fault}" for key, fault in faults))
    shared = known.model_dump(include=set(Search.model_fields) - {"space"}) if known else {}
    try:
        return Search(**shared | caps, space={**(known.space if known else {}), **given})
    except ValidationError as error:
        first = error.errors()[0]
        option = OPTION_OF.get(str(first["loc"][0]), first["loc"][0])
        raise UsageError(f"--{option}: {first['msg'].lower()}, got {first['input']!r}") from None


def parse_rates(text: str) -> tuple[float, ...]:
    """Return learning rates from `A,B,...`. Raises UsageError."""
    try:
        rates = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--rates {text!r}: write numbers and commas, as in 1e-4,3e-4,1e-3") from None
    if not all(0 < rate < float("inf") for rate in rates):
        raise UsageError(f"--rates {text!r}: every learning rate must be greater than 0")
    return rates


def parse_options(texts: list[str]) -> dict[str, Any]:
    """Return `key=value` texts as a mapping; whole numbers as numbers."""
    options: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--cluster-option {text!r}: write KEY=VALUE, as in timeout_min=60")
        options[key] = int(value) if value.isdecimal() else value
    return options


def write_page(folder: Path) -> tuple[str | None, list[str], list[str], str]:
    """Write the report; return its page, the answers, which variants differ, and where the page is or why it is not."""
    from peftlab.cli.report import answer_lines, list_groups
    from peftlab.comparison.report.write import write_report

    try:
        written = write_report(folder)
    except Exception as error:  # whatever fails in drawing, the runs and their table are worth more
        return None, [], [], f"the report could not be written: {one_line(f'{type(error).__name__}: {error}')}"
    return str(written.page), answer_lines(written), list_groups(written), f"the report is {written.page}"


def show_comparison(table: Table, answers: list[str], lines: list[str]) -> None:
    from peftlab.cli.render import show
    from peftlab.cli.render_comparison import render_comparison

    show("\n".join([*answers, ""]))
    show(render_comparison(table))
    show("\n".join(["", *lines]))
