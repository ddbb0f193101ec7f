"""Tables: within 80 columns, equal layers as one line, failed runs as rows that say so."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftlab.cli.render import (
    collapse,
    render_doctor,
    render_parameters,
    render_result,
    show,
)
from peftlab.cli.render_comparison import render_comparison
from peftlab.cli.render_memory import render_memory, render_methods
from peftlab.comparison.rows import Row, Table
from peftlab.comparison.trials import Trial
from peftlab.reports import (
    ComparisonReport,
    CountRow,
    MemoryReport,
    MethodPlan,
    ParameterReport,
    RunResult,
    TrialReport,
    VariantReport,
)

LARGE = 405_853_388_800


@pytest.fixture
def text_of(capsys):
    """Print a table as a command does where there is no terminal, and return the text."""

    def call(renderable) -> str:
        show(renderable)
        return capsys.readouterr().out

    return call


def report(layers: int = 126) -> ParameterReport:
    rows = [CountRow(name=f"layers.{i}", total=LARGE // 126, trainable=2_473_984) for i in range(layers)]
    rows.append(CountRow(name="outside", total=4_202_708_992, trainable=0))
    kinds = [CountRow(name="feed-forward", total=LARGE, trainable=0)]
    return ParameterReport(
        total=LARGE, trainable=311_721_984, active=LARGE // 3, stored_bytes=10**12, kinds=kinds, layers=rows
    )


def result(name: str, type: str, **fields) -> RunResult:
    example = {"prompt": "p " * 400, "reference": "the reference", "before": "the base's answer"}
    defaults = {
        "status": "finished",
        "recipe": {"method": {"type": type}},
        "environment": {},
        "parameters": report(),
        "memory": {"measured": MemoryReport(source="measured", device="cpu", peak_bytes=3 * 2**30)},
        "metrics": {"before": {"loss": 3.25}, "after": {"loss": 1.5}},
        "seconds": {"training": 120.0, "total": 1234.5},
        "examples": [example | {"after": f"answer of {name}"}],
    }
    return RunResult(name=name, **(defaults | fields))


def test_equal_neighbours_are_one_row():
    sizes = [5, 5, 5, 7, 5]
    rows = [CountRow(name=f"layers.{i}", total=total, trainable=1) for i, total in enumerate(sizes)]
    assert [(row.name, row.total) for row in collapse(rows)] == [
        ("layers.0-2, each", 5),
        ("layers.3", 7),
        ("layers.4", 5),
    ]


def test_parameters_of_a_large_model_are_a_few_lines_of_80_columns(text_of):
    text = text_of(render_parameters(report()))
    assert len(text.splitlines()) < 20
    assert max(map(len, text.splitlines())) <= 80
    assert "405,853,388,800" in text and "layers.0-125, each" in text


def compared(*runs: RunResult, seeds: int = 1, budget: str | None = None, rates: tuple[float, ...] = ()):
    """Return the table of a comparison in which every run is a variant, with equal values for all seeds but 0.1."""
    variants = []
    for run in runs:
        after = run.metrics.get("after", {}).get("loss")
        trials = [
            TrialReport(
                run=run.name, learning_rate=1e-3, seed=seed, status=run.status, error=run.error,
                test=None if after is None else after + 0.1 * seed,
            )
            for seed in range(seeds)
        ]  # fmt: skip
        kind = run.recipe["method"]["type"]
        sweep = [TrialReport(run=run.name, learning_rate=rate, seed=0, status="finished") for rate in rates]
        variants.append(
            VariantReport(
                name=run.name, method=kind, title=kind, budget=budget, learning_rate=1e-3, sweep=sweep, trials=trials
            )
        )  # fmt: skip
    report = ComparisonReport(
        name="c", metric="loss", higher_is_better=False, seeds=list(range(seeds)), variants=variants
    )
    rows = [
        Row(one.name, one, [Trial(trial, run) for trial in one.trials], [Trial(trial) for trial in one.sweep])
        for one, run in zip(variants, runs, strict=True)
    ]
    return render_comparison(Table(Path("c"), report, rows, []))


def test_a_comparison_has_a_row_for_every_run_and_an_answer_of_each(text_of):
    runs = [result("tiny-lora", "lora"), result("tiny-full", "full")]
    text = text_of(compared(*runs))
    assert max(map(len, text.splitlines())) <= 80
    row, _ = (line for line in text.splitlines() if line.startswith("full") and "answer" not in line)
    assert row.split() == ["full", "311,721,984", "0.0768", "%", "3.0", "GiB", "120", "3.2500", "1.5000"]
    assert text.count("the reference") == 1
    assert "answer of tiny-lora" in text and "answer of tiny-full" in text


def test_runs_of_one_method_are_distinguished_by_their_names(text_of):
    text = text_of(compared(result("a-lora", "lora"), result("b-lora", "lora")))
    assert text.splitlines()[2].startswith("a-lora") and text.splitlines()[3].startswith("b-lora")


def test_a_failed_run_is_a_row_that_says_why(text_of):
    failed = result("tiny-full", "full", status="diverged", error="[1] loss is nan", metrics={}, examples=[], memory={})
    text = text_of(compared(result("tiny-lora", "lora"), failed))
    assert "full, seed 0: diverged: [1] loss is nan" in text


def test_several_seeds_are_a_mean_and_a_spread(text_of):
    text = text_of(compared(result("tiny-lora", "lora"), seeds=3))
    assert "1.6000 ± 0.1000" in text and "loss, 3 seeds" in text


def test_a_row_with_budget_rate_and_spread_fits_one_line(text_of):
    run = result("tiny-adapters", "adapters")
    text = text_of(compared(run, seeds=3, budget="trainable=43.8k", rates=(3e-4, 1e-3)))
    row = next(line for line in text.splitlines() if line.startswith("adapters"))
    assert row.split() == "adapters 43.8k 311,721,984 120 0.001 3.2500 1.6000 ± 0.1000".split()
    assert "note: a better learning rate may be beyond those tried, for: adapters 43.8k" in " ".join(text.split())


def test_a_result_of_a_run_that_failed_early_prints_too(text_of):
    empty = RunResult(status="failed", name="x", recipe={}, environment={}, error="no data [b]")
    assert "x: failed (no data [b])" in text_of(render_result(empty))


def test_brackets_in_an_answer_are_text_and_no_markup(text_of):
    example = {"prompt": "[red]p[/red]", "after": "[/]"}
    text = text_of(render_result(result("x", "lora", examples=[example])))
    assert "[red]p[/red]" in text and "[/]" in text


def test_doctor_shows_the_reason_of_what_cannot_run(text_of):
    found = {
        "python": "3.11.7", "platform": "Linux", "device": "cpu", "threads": 2, "hub": "offline",
        "versions": {"torch": "2.13.0", "flash-attn": None},
        "untried_versions": ["peft 0.3: memory plans were tested with 0.21"],
        "devices": [{"device": "cpu", "name": "x86_64", "cores": 2, "bytes": 2**34}],
        "memory_bytes": {"total": 2**34, "available": 2**33},
        "methods": {"qlora": {"variants": {"nf4": None, "int8": "no [int8] kernels"}}},
        "speed": {"loss": "no logits [in chunks]"},
    }  # fmt: skip
    text = text_of(render_doctor(found))
    assert "no logits [in chunks]" in text
    assert "flash-attn   not installed" in text
    assert "no: no [int8] kernels" in text
    assert "note: peft 0.3: memory plans were tested with 0.21" in text


def test_memory_is_shown_as_a_part_of_full_fine_tunings_and_against_its_prediction(text_of):
    """Oracle: state is weights, a gradient as large as what trains, and the optimiser's, added up by hand."""

    def ledger(source: str, peak: int, **categories: int) -> MemoryReport:
        return MemoryReport(source=source, device="cpu", peak_bytes=peak, categories=categories)

    mib = 2**20
    full = ledger("measured", 400 * mib, trainable_weights=50 * mib, optimiser_state=100 * mib)
    lora = ledger("measured", 300 * mib, frozen_weights=38 * mib, trainable_weights=3 * mib, optimiser_state=6 * mib)
    everything = report().model_copy(update={"trainable": LARGE})
    rows = [
        result("a", "full", memory={"measured": full}, parameters=everything),
        result("b", "lora", memory={"measured": lora, "predicted": ledger("predicted", 309 * mib)}),
    ]
    lines = [line.split() for line in text_of(compared(*rows)).splitlines()]
    assert ["full", "200.0", "MiB", "1.00", "400.0", "MiB", "1.00", "-", "-"] in lines
    assert ["lora", "50.0", "MiB", "0.25", "300.0", "MiB", "0.75", "309.0", "MiB", "+3.0%"] in lines
    few_layers = text_of(compared(result("a", "full", memory={"measured": full}), rows[1]))
    assert "of full" not in few_layers and "+3.0%" in few_layers


def test_a_plan_says_whether_it_fits_and_what_would_make_it_fit(text_of):
    report = MemoryReport(
        source="predicted",
        device="cuda",
        peak_bytes=30 * 2**30,
        categories={"frozen_weights": 30 * 2**30},
        phases={"steady_step": 30 * 2**30},
        overheads={"cuda_context": 2**30},
        capacity_bytes=24 * 2**30,
        remedies=["training.batch_size=1 needs 20.0 GiB"],
        notes=["not yet measured"],
    )
    text = text_of(render_memory(report))
    assert "no, 7.0 GiB too much" in text and "training.batch_size=1 needs 20.0 GiB" in text
    assert "yes, 1.0 GiB to spare" in text_of(render_memory(report.model_copy(update={"capacity_bytes": 32 * 2**30})))
    assert max(map(len, text.splitlines())) <= 80


def test_methods_on_one_model_are_a_row_each_and_a_refusal_its_reason(text_of):
    memory = MemoryReport(source="predicted", device="cpu", peak_bytes=2**30, capacity_bytes=2**29)
    rows = [
        MethodPlan(method="lora", title="LoRA", trainable=100, fraction=0.01, relative_step_time=0.7, memory=memory),
        MethodPlan(method="bitfit", title="BitFit", error="no biases"),
    ]
    text = text_of(render_methods(rows))
    assert ["lora", "100", "1", "%", "1.0", "GiB", "0.70", "no"] in [line.split() for line in text.splitlines()]
    assert "bitfit: no biases" in text
