"""Predicted memory against the tracked memory of real steps of the training loop."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest

from peftlab.data.batches import RowGroup
from peftlab.memory.blueprint import build_blueprint
from peftlab.memory.predict import predict
from peftlab.recipe.schema import Recipe
from peftlab.reports import MemoryReport
from tests.memory.real import CONFIGS, CPU, LABELS, METHODS, tiny_recipe, track, work_of, write_model
from tests.sampling import sampled

# Alike to a few bytes: the loop's numbers (losses, counts) are not all traced.
TOLERANCE = 0.02
SHAPES = [{"batch_size": 2, "length": 16, "ragged": True}, {"batch_size": 4, "length": 40, "ragged": False}]


def describe(value) -> str:
    """Return a setting's name in a test's id."""
    if isinstance(value, dict):
        return "ragged" if value["ragged"] else "long"
    return {True: "checkpointed", False: "kept"}.get(value, value)


def recipe_for(folder, family: str, name: str, shape: dict, **training) -> Recipe:
    method = {"type": name, **METHODS[name]}
    if (family, name) == ("llama", "bitfit"):
        method["add_missing"] = True
    task = "sequence-classification" if family == "bert" else "causal-lm"
    return tiny_recipe(folder, method, shape["length"], task, batch_size=shape["batch_size"], **training)


def predicted(recipe: Recipe, ragged: bool) -> MemoryReport:
    blueprint = build_blueprint(recipe, CPU, LABELS if recipe.model.task == "sequence-classification" else None)
    return predict(blueprint, work_of(blueprint, ragged))


def assert_alike(report: MemoryReport, recipe: Recipe, ragged: bool) -> None:
    ledger = track(recipe, ragged)
    tracked = ledger.report()
    for phase, bytes_ in tracked.phases.items():
        assert report.phases[phase] == pytest.approx(bytes_, rel=TOLERANCE), phase
    peak = max(report.phases[phase] for phase in tracked.phases)
    assert peak == pytest.approx(tracked.peak_bytes, rel=TOLERANCE)
    if peak == report.peak_bytes:
        for category, bytes_ in tracked.categories.items():
            assert report.categories[category] == pytest.approx(bytes_, abs=TOLERANCE * peak), category


# Prefix tuning and checkpointing exclude each other.
PEAKS = [
    (family, name, checkpointing, shape)
    for family in CONFIGS
    for name in METHODS
    for checkpointing in (False, True)
    for shape in SHAPES
    if not (name == "prefix" and checkpointing)
]


RAGGED, LONG = SHAPES
SAMPLE = [
    ("llama", "full", True, LONG),
    ("llama", "adapters", False, RAGGED),
    ("qwen2", "lora", True, LONG),
    ("qwen2", "prefix", False, RAGGED),
    ("qwen2", "full", False, RAGGED),
    ("gpt2", "qlora", True, LONG),
    ("gpt2", "bitfit", False, RAGGED),
    ("gpt_neox", "full", True, RAGGED),
    ("gpt_neox", "prefix", False, LONG),
    ("opt", "lora", False, RAGGED),
    ("opt", "bitfit", True, LONG),
    ("bert", "qlora", False, RAGGED),
    ("bert", "adapters", True, LONG),
]


def test_every_two_settings_meet_in_the_sample():
    """But families and methods: two methods or three of each family, two families or three of each method."""
    sample, cases = ([(*case[:3], SHAPES.index(case[3])) for case in some] for some in (SAMPLE, PEAKS))
    for one, other in list(combinations(range(4), 2))[1:]:
        assert {(case[one], case[other]) for case in sample} == {(case[one], case[other]) for case in cases}


@pytest.mark.parametrize(("family", "name", "checkpointing", "shape"), sampled(PEAKS, SAMPLE), ids=describe)
def test_predicted_peaks_are_those_of_a_real_step(tmp_path, family, name, checkpointing, shape):
    folder = write_model(tmp_path, family)
    recipe = recipe_for(folder, family, name, shape, gradient_checkpointing=checkpointing)
    assert_alike(predicted(recipe, shape["ragged"]), recipe, shape["ragged"])


@pytest.mark.parametrize(
    ("family", "method"),
    [
        pytest.param("llama", {"type": "full"}, marks=pytest.mark.slow),
        pytest.param("llama", {"type": "full", "layers": 4}, marks=pytest.mark.slow),
        ("llama", {"type": "lora", "targets": ["layers.6.self_attn.q_proj", "layers.7"]}),
        pytest.param("gpt2", {"type": "adapters", "bottleneck": 8}, marks=pytest.mark.slow),
        pytest.param("qwen2", {"type": "prefix", "length": 5}, marks=pytest.mark.slow),
    ],
    ids=["full", "last-layers", "some-layers", "adapters", "prefix"],
)
def test_a_deep_model_is_predicted_from_a_few_of_its_layers(tmp_path, family, method):
    depth = "n_layer" if family == "gpt2" else "num_hidden_layers"
    folder = write_model(tmp_path, family, **{depth: 9})
    recipe = tiny_recipe(folder, method, 40, batch_size=2, gradient_accumulation=3)
    assert_alike(predicted(recipe, ragged=True), recipe, ragged=True)


@pytest.mark.parametrize("family", sampled(["llama", "gpt2"], ["gpt2"]))
def test_an_8_bit_base_is_predicted(tmp_path, family):
    method = {"type": "qlora", "rank": 4, "quantization": "int8"}
    recipe = tiny_recipe(write_model(tmp_path, family), method, 40, batch_size=2)
    assert_alike(predicted(recipe, ragged=True), recipe, ragged=True)


@pytest.mark.parametrize("name", sampled(list(METHODS), ["full", "qlora", "prefix"]))
def test_padded_rows_are_predicted_too(tmp_path, name):
    recipe = recipe_for(write_model(tmp_path, "llama"), "llama", name, SHAPES[0], speed={"packing": "off"})
    assert not build_blueprint(recipe, CPU).workload().packed
    assert_alike(predicted(recipe, ragged=True), recipe, ragged=True)


@pytest.mark.parametrize(("family", "architecture"), [("llama", "Llama"), ("bert", "Bert")])
@pytest.mark.parametrize("name", ["lora", "full"])
def test_rows_packed_below_a_classifiers_head_are_predicted(tmp_path, family, architecture, name):
    folder = write_model(tmp_path, family, architectures=[f"{architecture}ForSequenceClassification"])
    method = {"type": name, **METHODS[name]}
    recipe = tiny_recipe(folder, method, 40, "sequence-classification", batch_size=4)
    assert build_blueprint(recipe, CPU, LABELS).workload().packed
    assert_alike(predicted(recipe, ragged=True), recipe, ragged=True)


def test_a_plan_counts_packed_rows_without_their_padding(tmp_path):
    """One row of 40 tokens and three of 4: 52 tokens in place of 160, whatever a step keeps of each."""
    recipe = recipe_for(write_model(tmp_path, "llama"), "llama", "lora", {"batch_size": 4, "length": 40})
    work = build_blueprint(recipe, CPU).workload()
    ragged = replace(work, groups=(RowGroup(4, 3), RowGroup(40, 1)))
    assert [one.training_batch()["input_ids"].shape for one in (ragged, work)] == [(1, 52), (1, 160)]
    plans = [predict(build_blueprint(recipe, CPU), one).phases for one in (ragged, work)]
    passing = [phases["steady_step"] - phases["save"] for phases in plans]
    assert passing[0] == pytest.approx(passing[1] * 52 / 160, rel=0.1)
