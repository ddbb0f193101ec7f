"""Plans of any number of recomputed layers against real steps, and the fewest that fit."""

from __future__ import annotations

import pytest
import torch

from peftlab.errors import MethodError
from peftlab.memory.blueprint import LayersToRecompute
from peftlab.memory.fit import CHECKPOINTING, fewest_recomputed, with_settings
from peftlab.recipe.schema import Recipe
from peftlab.reports import CheckpointingReport, MemoryReport
from peftlab.runs.plan import plan
from peftlab.runs.planner import Planner
from tests.memory.real import CPU, METHODS, tiny_recipe, write_model
from tests.memory.test_predict import assert_alike, predicted
from tests.sampling import sampled

LAYERS = 8


def deep_recipe(folder, method: str = "lora", **training) -> Recipe:
    model = write_model(folder, "llama", num_hidden_layers=LAYERS)
    missing = {"add_missing": True} if method == "bitfit" else {}
    return tiny_recipe(model, {"type": method, **METHODS[method], **missing}, 40, batch_size=4, **training)


@pytest.mark.parametrize(("method", "number"), sampled([("lora", 4), ("full", LAYERS - 1)], [("full", LAYERS - 1)]))
def test_the_peak_of_some_recomputed_layers_is_that_of_a_real_step(tmp_path, method, number):
    recipe = deep_recipe(tmp_path, method, gradient_checkpointing=number)
    report = predicted(recipe, ragged=False)
    assert report.checkpointing == CheckpointingReport(layers=number, of=LAYERS)
    assert_alike(report, recipe, ragged=False)


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 3, 4, LAYERS - 1, LAYERS])
@pytest.mark.parametrize("method", sorted(set(METHODS) - {"prefix"}))
def test_the_peak_of_any_number_of_recomputed_layers_is_that_of_a_real_step(tmp_path, method, number):
    recipe = deep_recipe(tmp_path, method, gradient_checkpointing=number)
    assert_alike(predicted(recipe, ragged=True), recipe, ragged=True)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_a_part_of_other_families_is_predicted_too(tmp_path, family):
    depth = {"gpt2": "n_layer"}.get(family, "num_hidden_layers")
    model = write_model(tmp_path, family, **{depth: LAYERS})
    recipe = tiny_recipe(model, {"type": "lora", "rank": 4}, 40, batch_size=2, gradient_checkpointing=5)
    assert_alike(predicted(recipe, ragged=True), recipe, ragged=True)


def test_layers_below_the_lowest_trainable_one_are_predicted_as_they_are(tmp_path):
    model = write_model(tmp_path, "llama", num_hidden_layers=LAYERS)
    method = {"type": "lora", "rank": 4, "targets": [f"layers.{n}" for n in range(3, LAYERS)]}
    recipe = tiny_recipe(model, method, 40, batch_size=4, gradient_checkpointing=2)
    report = predicted(recipe, ragged=False)
    assert report.checkpointing == CheckpointingReport(layers=2, of=5)
    assert_alike(report, recipe, ragged=False)


@pytest.mark.slow
def test_each_further_layer_needs_less(tmp_path):
    planner = Planner(CPU)
    needed = [planner(deep_recipe(tmp_path, gradient_checkpointing=n)).needed_bytes for n in range(LAYERS + 1)]
    assert needed == sorted(needed, reverse=True) and needed[0] > 2 * needed[-1]


@pytest.mark.parametrize("spare", [0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("fitting", [1, 5, LAYERS])
def test_the_fewest_layers_that_fit_are_found(fitting, spare):
    """Any fall of memory with the number: here steep at first."""
    needs = {n: 1000 + 2000 // (n + 1) for n in range(LAYERS + 1)}
    capacity = needs[fitting] + int(spare * (needs[fitting - 1] - needs[fitting] - 1))
    tried: list[int] = []

    def plan_of(recipe: Recipe) -> MemoryReport:
        wanted = recipe.training.gradient_checkpointing
        tried.append(LAYERS if wanted is True else wanted)
        return MemoryReport(source="predicted", device="cpu", peak_bytes=needs[tried[-1]])

    recipe = tiny_recipe("-", {"type": "lora"})
    none = MemoryReport(source="predicted", device="cpu", peak_bytes=needs[0])
    change = fewest_recomputed(recipe, none, capacity, plan_of, LayersToRecompute(LAYERS, True))
    assert change.settings == {CHECKPOINTING: True if fitting == LAYERS else fitting}
    assert len(tried) == len(set(tried))


def test_where_layers_cannot_be_separate_all_are_recomputed():
    recipe = tiny_recipe("-", {"type": "lora"})
    reports = [MemoryReport(source="predicted", device="cpu", peak_bytes=size) for size in (100, 10)]
    change = fewest_recomputed(recipe, reports[0], 90, lambda _: reports[1], LayersToRecompute(LAYERS, False))
    assert change.settings == {CHECKPOINTING: True}


def test_inputs_on_the_host_are_the_last_resort_of_cuda():
    recipe, needs = tiny_recipe("-", {"type": "lora"}), {False: 100, True: 50, "offload": 40}

    def change(capacity: int, device: str = "cuda"):
        def plan_of(one: Recipe) -> MemoryReport:
            return MemoryReport(
                source="predicted", device=device, peak_bytes=needs[one.training.gradient_checkpointing]
            )

        none = MemoryReport(source="predicted", device=device, peak_bytes=100)
        return fewest_recomputed(recipe, none, capacity, plan_of, LayersToRecompute(LAYERS, False))

    assert change(50).settings == {CHECKPOINTING: True}
    assert change(49).settings == change(40).settings == {CHECKPOINTING: "offload"}
    assert change(39) is None and change(49, "cpu") is None


@pytest.mark.slow
def test_inputs_on_the_host_take_no_memory_of_the_device(tmp_path):
    tokens, hidden = 4 * 1024, 512
    sizes = {"hidden_size": hidden, "max_position_embeddings": 2048, "num_hidden_layers": 16}
    recipe = tiny_recipe(write_model(tmp_path, "llama", **sizes), {"type": "lora", "rank": 4}, 1024, batch_size=4)
    planner = Planner(torch.device("cuda"))
    plans = [planner(with_settings(recipe, {CHECKPOINTING: wanted})) for wanted in (True, "offload")]
    saved = [one.phases["steady_step"] for one in plans]
    # The input of each layer, in 16 bits, but for the layer that is computed again at the peak.
    assert saved[0] - saved[1] == pytest.approx(16 * tokens * hidden * 2, rel=0.1)
    assert [one.checkpointing.on_host for one in plans] == [False, True]


@pytest.mark.slow
def test_a_plan_says_how_many_layers_are_recomputed(tmp_path):
    recipe = deep_recipe(tmp_path)
    planner = Planner(CPU)
    none, every = (planner(with_settings(recipe, {CHECKPOINTING: wanted})).needed_bytes for wanted in (False, True))
    capacity = (none + every) // 2
    report = plan(recipe, memory=f"{capacity}B", device="cpu")
    assert report.fits and 1 < report.checkpointing.layers < LAYERS
    fewer = with_settings(recipe, {CHECKPOINTING: report.checkpointing.layers - 1})
    assert planner(fewer).needed_bytes > capacity
    assert "recomputed in the backward pass" in report.checkpointing.describe()


def test_too_many_layers_are_an_error(tmp_path):
    with pytest.raises(MethodError, match="gradients reach 8 layers"):
        plan(deep_recipe(tmp_path, gradient_checkpointing=9), device="cpu")
