"""A run measures what its result costs in use: exact counts, and no change in what it saves."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from peftlab.cli.render import describe_inference
from peftlab.evaluation import latency
from peftlab.memory.fit import with_settings
from peftlab.methods import METHODS as ALL
from peftlab.reports import InferenceReport
from peftlab.runs import inference
from peftlab.runs.bench import prepare
from peftlab.runs.inference import as_saved, measure_inference
from peftlab.runs.run import train
from peftlab.world.open import open_world
from tests.runs.recipes import short_recipe

# By hand: builtin:tiny has 6 layers of width 192 with an inner width of 512; rank 4, width 8, length 4.
EXTRA = {
    "full": 0,
    "lora": 6 * 4 * (4 * (192 + 192) + 3 * (192 + 512)),
    "qlora": 6 * 4 * (4 * (192 + 192) + 3 * (192 + 512)),
    "adapters": 12 * (2 * 192 * 8 + 8 + 192),
    "prefix": 4 * 2 * 6 * 192,
    "projection": 4 * 2 * 6 * 192,
    "bitfit": 0,
}


def measure(name: str, folder) -> InferenceReport:
    """Measure a method as it starts; a projection as it is saved."""
    recipe = short_recipe("prefix" if name == "projection" else name, folder)
    network = {"method.projection": True, "method.projection_dim": 5} if name == "projection" else {}
    recipe = with_settings(recipe, {"data.train_rows": 4, "data.evaluation_rows": 4} | network)
    bench = prepare(recipe, open_world("auto"))
    model = bench.apply().model
    recipe.method.save(model, folder, {"base_model": bench.base.source})
    return measure_inference(bench, as_saved(bench, model, folder))


@pytest.fixture(scope="module")
def few_passes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "ROUNDS", 3)
        patch.setattr(latency, "WARM_UP_ROUNDS", 1)
        yield


@pytest.fixture(scope="module")
def reports(tmp_path_factory, few_passes):
    """Each method's cost, its latency measured in few passes."""
    return {name: measure(name, tmp_path_factory.mktemp(name)) for name in EXTRA}


@pytest.mark.parametrize("name", EXTRA)
def test_extra_parameters_are_those_of_the_formula_and_none_when_merged(reports, name):
    report = reports[name]
    assert report.extra_parameters == EXTRA[name]
    merges = ALL["prefix" if name == "projection" else name].mergeable
    assert report.extra_parameters_merged == (0 if merges else None)
    assert set(report.seconds) == set(report.relative) == {"base", "unmerged", *(["merged"] if merges else [])}
    assert min(report.seconds.values()) > 0 and report.relative["base"] == 1
    assert (report.rows, report.tokens) == (1, 96)


@pytest.mark.parametrize("name", ["lora", "adapters", "prefix", "projection"])
def test_weights_in_memory_grow_by_four_bytes_an_extra_parameter(reports, name):
    sizes = reports[name].weight_bytes
    assert sizes["unmerged"] - sizes["base"] == 4 * EXTRA[name]
    assert sizes.get("merged", sizes["base"]) == sizes["base"]


def test_merging_qlora_costs_the_memory_of_plain_weights_and_reports_it(reports):
    report = reports["qlora"]
    assert report.weight_bytes["merged"] == reports["full"].weight_bytes["base"] == 4 * 3_455_040
    assert report.weight_bytes["base"] < report.weight_bytes["merged"] / 2.5
    assert describe_inference(report).endswith(", in 13.2 MiB of weights instead of 4.7 MiB")


def test_the_summary_shows_what_merging_removes(reports):
    message = describe_inference(reports["lora"])
    assert message.startswith("87,552 more parameters; 1 × 96 tokens: ") and ", merged " in message
    assert "cannot be merged; 1 × 96 tokens: " in describe_inference(reports["adapters"])


def test_without_memory_for_it_a_run_continues_with_a_note(monkeypatch, tmp_path):
    def exhausted(bench, model):
        raise torch.OutOfMemoryError("no room")

    notes = []
    monkeypatch.setattr(inference, "measure_inference", exhausted)
    bench = SimpleNamespace(recipe=short_recipe("lora", tmp_path))
    assert inference.try_inference(bench, torch.nn.Identity(), tmp_path, notes.append) is None
    assert notes[0].startswith("evaluation.latency: not measured, no memory")


def test_a_run_measures_where_it_is_asked_to_and_saves_the_same(few_passes, tmp_path):
    found = {}
    for measured in (True, False):
        recipe = short_recipe("lora", tmp_path / str(measured), steps=2)
        found[measured] = train(with_settings(recipe, {"evaluation.latency": measured, "data.evaluation_rows": 4}))
    assert found[True].inference.extra_parameters == EXTRA["lora"] and "latency" in found[True].seconds
    assert found[False].inference is None and "latency" not in found[False].seconds
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "True/weights" / name).read_bytes() == (tmp_path / "False/weights" / name).read_bytes()
