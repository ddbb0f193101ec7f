"""The model card of a run's result: what the record says, in the form that the hub reads."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData, metadata_load, try_to_load_from_cache

from peftlab.evaluation.resampling import LEAST_ROWS, REPLICATES, draw_metric
from peftlab.metrics import METRICS, RowScores
from peftlab.models.reference import HUB_ID, resolve
from peftlab.quantities import format_bytes, format_metric, format_share
from peftlab.recipe.dump import dump_recipe
from peftlab.recipe.schema import Recipe, list_sources
from peftlab.reports import AgreementReport, Change, RunResult
from peftlab.runs.card_code import write_code
from peftlab.runs.digests import SCORES
from peftlab.runs.directory import RunDirectory, text_scores
from peftlab.runs.scores import read_scores

CARD = "README.md"
CARD_PARTS = (SCORES,)
"""What a card reads of a run besides its record."""
UNKNOWN = "not known to peftlab; look at its source"
# What ships with peftlab is made from Python's standard library; the packages name their licence themselves.
OWN_LICENCES = {"builtin:": "psf-2.0"}
LIBRARIES = {"plain": "transformers", "peftlab": "peft", "gguf-adapter": "gguf"}
"""The library that a name in LOADS stands for, where it is not the library's own name."""


def write_card(
    folder: Path,
    recipe: Recipe,
    directory: RunDirectory,
    *,
    loads: str,
    file: str = "",
    agreement: AgreementReport | None = None,
    place: str = "REPO",
) -> Path:
    """Write the card of what a run made into `folder`, and return its path.

    `loads` is a name in LOADS, `agreement` how far the folder's model is from the trained one.
    """
    result, scores = directory.read_result(), read_scores(directory.scores)
    base = recipe.model.name if resolve(recipe.model.name, recipe.model.revision).kind == "hub" else None
    licence = base_licence(recipe)
    data = ModelCardData(
        license="other" if licence in OWN_LICENCES.values() else licence,
        license_name=licence if licence in OWN_LICENCES.values() else None,
        base_model=base,
        library_name=LIBRARIES.get(loads, loads),
        tags=["peftlab", recipe.method.type],
        model_name=result.name,
        eval_results=_results(recipe, result),
    )
    dtype = (result.environment.get("types") or {}).get("weights")
    code = write_code(recipe, directory.weights, loads, place, file, dtype)
    parts = [
        f"# {result.name}",
        f"{recipe.model.name}, trained with {recipe.method.title} by peftlab on {_sources(recipe)}.",
        f"## Load\n\n```python\n{code}\n```",
        _metrics(result, scores),
        _data(result),
        _costs(result),
        _gap(agreement),
        _licences(recipe, licence),
        _versions(result),
        "## Recipe\n\n```yaml\n" + dump_recipe(recipe).strip() + "\n```",
    ]
    text = f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n"
    path = folder / CARD
    ModelCard(text).save(path)
    return path


def base_licence(recipe: Recipe) -> str | None:
    """Return the licence that the base's own card names, in its folder or in the cache of the hub; None without one."""
    reference = resolve(recipe.model.name, recipe.model.revision)
    if (own := own_licence(recipe.model.name)) is not None:
        return own
    card = reference.folder / CARD if reference.folder else find_cached(str(reference.hub_id), "model")
    return read_licence(card)


def own_licence(name: str) -> str | None:
    """Return the licence of what ships with peftlab, or in a package that peftlab knows; None for anything else."""
    return next((licence for prefix, licence in OWN_LICENCES.items() if name.startswith(prefix)), None)


def find_cached(repo: str, kind: str) -> Path | None:
    """Return the card of a repository of the hub where it was downloaded before."""
    found = try_to_load_from_cache(repo, CARD, repo_type=kind)
    return Path(found) if isinstance(found, str) else None


def read_licence(card: Path | None) -> str | None:
    """Return the licence in a card's header."""
    if card is None or not card.is_file():
        return None
    try:
        return (metadata_load(card) or {}).get("license")
    except ValueError:
        return None


def _licences(recipe: Recipe, base: str | None) -> str:
    """Return the licences of the base and of each source of training rows, where they are known."""
    lines = [f"- base, {recipe.model.name}: {base or UNKNOWN}"]
    for entry in list_sources(recipe.data.train):
        name = re.sub(r"[:\[].*", "", entry.source) if not own_licence(entry.source) else entry.source
        known = own_licence(entry.source)
        if known is None and HUB_ID.fullmatch(name) and not Path(name).exists():
            known = read_licence(find_cached(name, "dataset"))
        lines.append(f"- data, `{Path(entry.source).name}`: {known or UNKNOWN}")
    return "## Licences\n\n" + "\n".join(lines)


def _results(recipe: Recipe, result: RunResult) -> list[EvalResult] | None:
    found = [
        EvalResult(
            task_type=recipe.model.task,
            dataset_type="held-out",
            dataset_name="held-out rows of the run",
            metric_type=name,
            metric_value=value,
        )
        for name, value in result.metrics.get("after", {}).items()
        if value is not None
    ]
    return found or None


def _sources(recipe: Recipe) -> str:
    return ", ".join(f"`{Path(entry.source).name}`" for entry in list_sources(recipe.data.train))


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _metrics(result: RunResult, scores: Mapping[str, RowScores]) -> str:
    """Return the metrics before and after, each with the interval of its rows where their scores are known."""
    times = [when for when in ("before", "after", "test_before", "test_after") if when in result.metrics]
    names = dict.fromkeys(name for when in times for name in result.metrics[when])
    rows = [(name, *(_with_interval(name, when, result, scores) for when in times)) for name in names]
    if not rows:
        return ""
    table = _table(("metric", *(when.replace("_", " ") for when in times)), rows)
    drawn = f"\n\nIn brackets: 95 % of {REPLICATES:,} drawings of the same rows (bootstrap)." if "[" in table else ""
    return f"## Held-out rows\n\n{table}{drawn}"


def _with_interval(name: str, when: str, result: RunResult, scores: Mapping[str, RowScores]) -> str:
    value = result.metrics[when].get(name)
    known = (_interval(name, scores.get(part)) for part in (when, text_scores(when)))
    found = next((interval for interval in known if interval is not None), None)
    return format_metric(value) + (f" [{', '.join(map(format_metric, found))}]" if found and value is not None else "")


def _interval(name: str, rows: RowScores | None) -> tuple[float, float] | None:
    """Return the 2.5 and 97.5 % quantiles of a metric when its rows are drawn again; None where they do not give it."""
    if rows is None or name not in METRICS or rows.rows < LEAST_ROWS or not METRICS[name].suits(rows):
        return None
    drawn = draw_metric(name, [rows]).replicates
    if drawn is None or not np.isfinite(drawn).all():
        return None
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def _data(result: RunResult) -> str:
    parts: Mapping[str, Any] = {
        name: one for name, one in result.data.items() if isinstance(one, dict) and "rows" in one
    }
    rows = [
        (name, f"{one['rows']:,}", f"{one.get('supervised', 0):,}", f"`{str(one.get('sha256', '-'))[:16]}`")
        for name, one in parts.items()
    ]
    leaks = [
        f"- {parts}: {', '.join(f'{number} {what}' for what, number in found.items() if isinstance(number, int))}"
        for parts, found in (result.data.get("leaks") or {}).items()
        if isinstance(found, dict)
    ]
    title = "## Data\n\n" + _table(("part", "rows", "supervised tokens", "sha256"), rows)
    return (title + ("\n\nThe same in two parts:\n\n" + "\n".join(leaks) if leaks else "")) if rows else ""


def _costs(result: RunResult) -> str:
    rows = []
    if result.parameters:
        share = format_share(result.parameters.fraction)
        rows.append(("trained parameters", f"{result.parameters.trainable:,} of {result.parameters.total:,} ({share})"))
    rows += [(f"peak memory, {kind}", format_bytes(one.peak_bytes)) for kind, one in result.memory.items()]
    rows += [(f"seconds, {name}", f"{value:.0f}") for name, value in result.seconds.items() if name == "total"]
    return "## Cost\n\n" + _table(("what", "value"), rows) if rows else ""


def _gap(found: AgreementReport | None) -> str:
    if found is None:
        return ""
    metrics = found.metrics
    rows = [
        ("logits, root mean square", f"{found.rms:.3g}"),
        ("KL divergence, nats", f"{found.kl:.3g}"),
        ("same likeliest class", format_share(found.same_top)),
        ("loss, trained and here", _both(found.loss_first, found.loss_second, found.loss_change)),
        *((f"{name}, trained and here", _both(one.first, one.second, one.change)) for name, one in metrics.items()),
    ]
    title = f"## Difference from the trained model\n\nOn {found.rows} held-out rows, {found.targets:,} targets."
    return f"{title}\n\n" + _table(("what", "value"), rows)


def _both(first: float, second: float, change: Change) -> str:
    """Return two values of a metric, and the interval of their difference, or that alone where few rows give none."""
    value, low, high = change
    found = f"{value:+.2g}" if low is None or high is None else f"[{low:+.2g}, {high:+.2g}]"
    return f"{format_metric(first)} and {format_metric(second)}, change {found}"


def _versions(result: RunResult) -> str:
    versions = result.environment.get("versions") or {}
    found = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    facts = result.environment
    hardware = [facts.get("device"), facts.get("platform")]
    hardware += [f"{count} {noun}" for noun in ("threads", "processes") if (count := facts.get(noun)) and count > 1]
    where = ", ".join(str(one) for one in hardware if one)
    python = f"Python {facts['python']}, " if "python" in facts else ""
    return f"## Made with\n\n{python}{found}.\n\nHardware: {where}." if found else ""
