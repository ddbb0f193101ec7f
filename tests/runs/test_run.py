from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from peftlab.errors import DivergedError, MethodError, MissingRequirementError, StorageError
from peftlab.methods import METHODS
from peftlab.parameters.report import parameter_report
from peftlab.recipe.load import load_recipe
from peftlab.reports import PHASES, RunResult
from peftlab.runs.directory import RunDirectory
from peftlab.runs.display import NoDisplay
from peftlab.runs.generation import generate
from peftlab.runs.run import train
from peftlab.runs.setup import count_steps
from peftlab.runs.use import evaluate
from tests.runs.recipes import shallow_recipe


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Every method run once on the shipped model, by name: (result, directory)."""
    root = tmp_path_factory.mktemp("runs")
    results = {}
    for name in METHODS:
        result = train(shallow_recipe(name, root / name), name=name, display=NoDisplay())
        results[name] = (result, RunDirectory.open(root / name))
    return results


@pytest.mark.parametrize("method", METHODS)
def test_every_method_lowers_the_held_out_loss(runs, method):
    result, _ = runs[method]
    assert result.status == "finished"
    assert result.metrics["after"]["loss"] < result.metrics["before"]["loss"]


@pytest.mark.parametrize("method", METHODS)
def test_the_audit_finds_every_trainable_moved_and_no_frozen_byte_changed(runs, method):
    audit = runs[method][0].audit
    assert audit.clean, audit
    assert audit.steps == 3


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_run_evaluates_to_the_same_loss(runs, method):
    result, directory = runs[method]
    assert evaluate(directory.path)["loss"] == pytest.approx(result.metrics["after"]["loss"], abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_report_of_a_run_is_that_of_the_model_it_trained(runs, method):
    result, _ = runs[method]
    report = result.parameters
    assert 0 < report.trainable < report.total
    assert sum(row.total for row in report.kinds) == report.total
    assert sum(row.trainable for row in report.kinds) == report.trainable
    assert sum(row.trainable for row in report.layers) == report.trainable


def test_only_trained_weights_are_saved_unless_the_method_is_full(runs):
    for name, (result, directory) in runs.items():
        stored = sum(t.numel() for file in directory.weights.glob("*.safetensors") for t in load_file(file).values())
        expected = result.parameters.total if name == "full" else result.parameters.trainable
        assert stored == expected, name


def test_the_result_on_disk_is_the_result_returned(runs):
    result, directory = runs["lora"]
    assert directory.read_result() == result
    assert RunResult.model_validate(json.loads(directory.result.read_text()), extra="ignore").progress.step == 6


def test_the_saved_recipe_is_the_recipe(runs):
    result, directory = runs["lora"]
    assert load_recipe(directory.recipe).model_dump(mode="json") == result.recipe


def test_the_metrics_file_has_losses_learning_rates_and_evaluations(runs):
    lines = [json.loads(line) for line in runs["lora"][1].metrics.read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "train"] == [1, 2, 4, 6]
    assert [line["step"] for line in lines if line["event"] == "evaluation"] == [0, 6]
    assert all(line["learning_rate"] > 0 and line["gradient_norm"] > 0 for line in lines if line["event"] == "train")


def test_a_loss_curve_is_drawn(runs):
    assert runs["lora"][1].picture.read_bytes().startswith(b"\x89PNG")


def test_progress_counts_rows_and_supervised_tokens(runs):
    result, _ = runs["lora"]
    assert result.progress.rows == 6 * 4
    assert 0 < result.progress.tokens < result.data["train"]["tokens"]


def test_the_ledger_of_the_longest_rows_is_measured(runs):
    """Oracle: bytes that follow from counts alone; what is saved for backward must be there at the peak."""
    for name, (result, _) in runs.items():
        memory, report = result.memory["measured"], result.parameters
        assert memory.source == "measured"
        assert tuple(memory.phases) == PHASES
        assert memory.peak_bytes == sum(memory.categories.values()) == max(memory.phases.values())
        assert memory.categories["trainable_weights"] == 4 * report.trainable, name
        assert memory.categories["optimiser_state"] >= 8 * report.trainable, name
        assert memory.categories["saved_activations"] > 0
    assert runs["qlora"][0].memory["measured"].categories["quantisation_state"] > 0


def test_the_process_is_measured_in_every_phase(runs):
    memory = runs["lora"][0].memory["process"]
    assert set(memory.phases) >= {"load", "evaluation_before", "apply", "training", "evaluation_after", "save"}
    assert memory.peak_bytes == max(memory.phases.values()) >= sum(memory.categories.values()) > 0


def test_the_preflight_does_not_change_the_training(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("peftlab.runs.training.measure_longest", lambda *_: runs["lora"][0].memory["measured"])
    without = train(shallow_recipe("lora", tmp_path / "run"), display=NoDisplay())
    assert without.metrics == runs["lora"][0].metrics


def test_the_preflight_does_not_decay_the_weights(runs, tmp_path, monkeypatch):
    decaying = {"steps": 1, "weight_decay": 100.0}
    with_it = train(shallow_recipe("adapters", tmp_path / "with", **decaying), display=NoDisplay())
    monkeypatch.setattr("peftlab.runs.training.measure_longest", lambda *_: runs["lora"][0].memory["measured"])
    without = train(shallow_recipe("adapters", tmp_path / "without", **decaying), display=NoDisplay())
    assert without.metrics == with_it.metrics


def test_the_scores_of_every_row_make_the_metrics(runs):
    result, directory = runs["lora"]
    scores = json.loads(directory.scores.read_text())
    for when in ("before", "after"):
        assert len(scores[when]["loss"]) == result.data["evaluation"]["rows"]
        assert sum(scores[when]["count"]) == result.data["evaluation"]["supervised"]
        mean = sum(scores[when]["loss"]) / sum(scores[when]["count"])
        assert mean == pytest.approx(result.metrics[when]["loss"], rel=1e-12)


def test_examples_are_kept_before_and_after(runs):
    (example,) = runs["lora"][0].examples
    assert set(example) == {"prompt", "reference", "before", "after"}


def test_a_run_generates(runs):
    directory = runs["lora"][1]
    assert isinstance(generate(directory.path, "# heapq: heappush\n"), str)
    with pytest.raises(StorageError, match="is not a run directory"):
        generate(directory.path.parent, "x")


def test_the_same_recipe_gives_the_same_bytes(runs, tmp_path):
    train(shallow_recipe("lora", tmp_path / "again"), display=NoDisplay())
    again, first = (
        load_file(path / "weights" / "adapter_model.safetensors") for path in (tmp_path / "again", runs["lora"][1].path)
    )
    assert again.keys() == first.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(again[name], tensor, rtol=0, atol=0)


def test_evaluation_during_training_is_recorded(tmp_path):
    recipe = shallow_recipe("bitfit", tmp_path / "run", steps=4)
    recipe = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"every": 2})})
    train(recipe, display=NoDisplay())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "evaluation"] == [0, 2, 4]


def test_a_run_that_diverges_has_that_status_in_its_record(tmp_path):
    with pytest.raises(DivergedError, match="step 2"):
        train(shallow_recipe("full", tmp_path / "run", learning_rate=1e30, schedule="constant"), display=NoDisplay())
    result = RunDirectory.open(tmp_path / "run").read_result()
    assert result.status == "diverged" and "step 2" in result.error
    assert not (tmp_path / "run" / "weights").exists()


def test_a_method_that_does_not_fit_the_model_fails_before_weights_are_loaded(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("peftlab.runs.loading.load_model", refuse)
    recipe = shallow_recipe("lora", tmp_path / "run")
    recipe = recipe.model_copy(update={"method": recipe.method.model_copy(update={"rank": 10_000})})
    with pytest.raises(MethodError, match="method.rank: .* so that rank 10000 does not fit"):
        train(recipe, display=NoDisplay())
    assert RunDirectory.open(tmp_path / "run").read_result().status == "failed"


def test_a_tracker_that_is_not_installed_is_one_line(tmp_path):
    recipe = shallow_recipe("lora", tmp_path / "run")
    recipe = recipe.model_copy(update={"run": recipe.run.model_copy(update={"trackers": ("comet_ml",)})})
    with pytest.raises(MissingRequirementError, match="run.trackers: comet_ml"):
        train(recipe, display=NoDisplay())


EPOCHS = [(1, 16, 1, 2), (1, 17, 1, 3), (0.5, 16, 2, 1), (1.1, 80, 1, 11), (0.7, 240, 1, 21), (1 / 3, 24, 1, 1)]


@pytest.mark.parametrize(("epochs", "rows", "processes", "steps"), EPOCHS)
def test_epochs_are_whole_steps(tmp_path, epochs, rows, processes, steps):
    training = shallow_recipe("lora", tmp_path, steps=None, epochs=epochs, batch_size=8).training
    assert count_steps(training, rows, processes) == steps


def test_parameter_report_of_a_reloaded_run_equals_the_runs_own(runs):
    from peftlab.runs.bench import prepare
    from peftlab.world.open import open_world

    result, directory = runs["adapters"]
    recipe = load_recipe(directory.recipe)
    model = recipe.method.load(prepare(recipe, open_world(recipe.run.device)).base.model, directory.weights)
    assert parameter_report(model).total == result.parameters.total
