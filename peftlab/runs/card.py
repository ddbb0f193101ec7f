"""The model card of a run's result: what the record says, in the form that the hub reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData, metadata_load

from peftlab.models.reference import resolve
from peftlab.quantities import format_bytes, format_metric, format_share
from peftlab.recipe.dump import dump_recipe
from peftlab.recipe.schema import Recipe, list_sources
from peftlab.reports import AgreementReport, RunResult

CARD = "README.md"
LOADS: dict[str, str] = {
    "plain": "from transformers import {auto}, AutoTokenizer\nmodel = {auto}.from_pretrained({place!r})\n"
    "tokenizer = AutoTokenizer.from_pretrained({place!r})",
    "peft": "from peft import PeftModel\nfrom transformers import {auto}\n"
    "model = PeftModel.from_pretrained({auto}.from_pretrained({base!r}), {place!r})",
    "peftlab": "from pathlib import Path\nfrom peftlab.runs.generation import generate\n"
    'print(generate(Path("RUN"), "a prompt"))',
    "adapters": "import adapters\nfrom transformers import {auto}\nmodel = {auto}.from_pretrained({base!r})\n"
    "adapters.init(model)\nmodel.load_adapter({place!r}, set_active=True, use_safetensors=True)",
    "gguf-adapter": "# beside the base in GGUF\nllama-server -m BASE.gguf --lora {file}",
    "gguf": "from transformers import {auto}\n# or: llama-server -m {file}\n"
    "model = {auto}.from_pretrained({place!r}, gguf_file={file!r})",
}


def write_card(
    folder: Path,
    recipe: Recipe,
    result: RunResult,
    *,
    loads: str,
    file: str = "",
    agreement: AgreementReport | None = None,
    place: str = "REPO",
) -> Path:
    """Write the card of what a run made into `folder`, and return its path.

    `loads` is a name in LOADS, `agreement` how far the folder's model is from the trained one.
    """
    base = recipe.model.name if resolve(recipe.model.name, recipe.model.revision).kind == "hub" else None
    licence = base_licence(recipe)
    data = ModelCardData(
        license=licence,
        base_model=base,
        library_name={"plain": "transformers", "gguf": "gguf", "adapters": "adapters"}.get(loads, "peft"),
        tags=["peftlab", recipe.method.type],
        model_name=result.name,
        eval_results=_results(recipe, result),
    )
    facts = {"auto": recipe.task.auto_class, "base": recipe.model.name, "place": place, "file": file}
    parts = [
        f"# {result.name}",
        f"{recipe.model.name}, trained with {recipe.method.title} by peftlab on {_sources(recipe)}.",
        "## Load\n\n```python\n" + LOADS[loads].format(**facts) + "\n```",
        _metrics(result),
        _data(result),
        _costs(result),
        _gap(agreement),
        f"## Licences\n\nBase: {licence or 'not known to peftlab'}. Data: not known to peftlab; look at its source.",
        _versions(result),
        "## Recipe\n\n```yaml\n" + dump_recipe(recipe).strip() + "\n```",
    ]
    text = f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n"
    path = folder / CARD
    ModelCard(text).save(path)
    return path


def base_licence(recipe: Recipe) -> str | None:
    """Return the licence that the base's own card names, where it is a folder with one."""
    reference = resolve(recipe.model.name, recipe.model.revision)
    card = reference.folder and reference.folder / CARD
    if not card or not card.is_file():
        return None
    try:
        return (metadata_load(card) or {}).get("license")
    except ValueError:
        return None


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


def _metrics(result: RunResult) -> str:
    times = [when for when in ("before", "after", "test_before", "test_after") if when in result.metrics]
    names = dict.fromkeys(name for when in times for name in result.metrics[when])
    rows = [(name, *(format_metric(result.metrics[when].get(name)) for when in times)) for name in names]
    return (
        "## Held-out rows\n\n" + _table(("metric", *(when.replace("_", " ") for when in times)), rows) if rows else ""
    )


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
    rows = [
        ("logits, root mean square", f"{found.rms:.3g}"),
        ("KL divergence, nats", f"{found.kl:.3g}"),
        ("same likeliest class", format_share(found.same_top)),
        ("loss, trained and here", f"{found.loss_first:.4f} and {found.loss_second:.4f}"),
    ]
    title = f"## Difference from the trained model\n\nOn {found.rows} held-out rows, {found.targets:,} targets."
    return f"{title}\n\n" + _table(("what", "value"), rows)


def _versions(result: RunResult) -> str:
    versions = result.environment.get("versions") or {}
    found = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    device = result.environment.get("device")
    return f"## Made with\n\n{found}{f'; {device}' if device else ''}." if found else ""
