"""The memory of writing answers: the probe of two passes against transformers' own generation, and the plan of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import GenerationConfig

from peftlab.memory.blueprint import build_blueprint
from peftlab.memory.depth import Stack
from peftlab.memory.fit import with_settings
from peftlab.memory.generation import Answers, write_last_token
from peftlab.memory.predict import predict
from peftlab.memory.probe import Probe
from peftlab.recipe.schema import Recipe
from tests.memory.real import CPU, METHODS, prepare, rows_of, tiny_recipe, write_model
from tests.sampling import sampled

ROWS, NEW = 3, 30
SHORT_WINDOW, LONG_WINDOW = 6, 100
CACHES = [
    ("mistral", SHORT_WINDOW),
    ("mistral", LONG_WINDOW),
    ("gemma2", SHORT_WINDOW),
    ("gemma3_text", LONG_WINDOW),
    ("phi3", SHORT_WINDOW),
    ("starcoder2", LONG_WINDOW),
    ("gpt_oss", SHORT_WINDOW),
    ("mamba", None),
    ("qwen3_next", None),
]


def tracked(model, run) -> int:
    probe = Probe(CPU)
    with torch.no_grad(), probe.alone("generation", model):
        run()
    return probe.report().phases["generation"]


def real_model(recipe: Recipe) -> nn.Module:
    return prepare(recipe, rows_of(recipe, ragged=False)).model.eval()


def assert_as_generate(model: nn.Module, length: int, beams: int) -> None:
    ids = torch.ones(ROWS, length, dtype=torch.int64)
    mask = torch.ones_like(ids)
    whole = GenerationConfig(max_new_tokens=NEW, min_new_tokens=NEW, num_beams=beams, pad_token_id=0)
    every = tracked(model, lambda: model.generate(input_ids=ids, attention_mask=mask, generation_config=whole))
    last = tracked(model, lambda: write_last_token(model, ids, mask, Answers(ROWS, length, NEW, beams)))
    # Beam search's own scores and indices weigh something on a model of 64 hidden units.
    assert last == pytest.approx(every, rel=0.02 if beams == 1 else 0.05)


def assert_predicted(recipe: Recipe, model: nn.Module) -> None:
    """One prompt is padded, since a plan assumes rows of several lengths."""
    blueprint = build_blueprint(recipe, CPU)
    answers = blueprint.answers
    ids = torch.ones(answers.rows, answers.length, dtype=torch.int64)
    mask = ids.clone()
    mask[0, 0] = 0
    states = 8 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    measured = tracked(model, lambda: write_last_token(model, ids, mask, answers))
    assert predict(blueprint).phases["generation"] == pytest.approx(measured + states, rel=0.02)


PASSES = [
    (*model, beams, length)
    for model in (("llama", "lora"), ("gpt2", "prefix"), ("qwen2", "prompt"))
    for beams in (1, 3)
    for length in (8, 25)
]
# Every two of model, beams and length.
SAMPLE = [PASSES[place] for place in (0, 3, 5, 6, 8, 11)]


@pytest.mark.parametrize(("family", "name", "beams", "length"), sampled(PASSES, SAMPLE))
def test_two_passes_hold_what_generating_every_token_holds(tmp_path, family, name, beams, length):
    """Oracle: transformers' generate, watched from end to end. Short prompts peak at the end, long ones at once."""
    method = {"type": "prefix", "kind": "prompt", "length": 5} if name == "prompt" else {"type": name, **METHODS[name]}
    assert_as_generate(real_model(tiny_recipe(write_model(tmp_path, family), method)), length, beams)


# A window in some layers, another cache's class, states of two kinds.
CACHES_SAMPLE = [("gemma2", SHORT_WINDOW), ("starcoder2", LONG_WINDOW), ("mamba", None), ("qwen3_next", None)]


@pytest.mark.parametrize(("family", "window"), sampled(CACHES, CACHES_SAMPLE))
def test_windows_and_recurrent_states_are_measured_and_predicted(tmp_path, family, window):
    """A short window is full before the prompt ends, a long one never. Gemma and gpt-oss also have full layers."""
    folder = write_model(tmp_path, family, **{"sliding_window": window} if window else {})
    settings = {"evaluation.generation": {"examples": 4, "max_new_tokens": 20}}
    recipe = with_settings(tiny_recipe(folder, {"type": "full"}, 32 if window else 12, batch_size=2), settings)
    model = real_model(recipe)
    for length, beams in ((8, 1), (25, 3)) if window else ((8, 3),):
        assert_as_generate(model, length, beams)
    assert_predicted(recipe, model)


@pytest.mark.slow
def test_layers_with_and_without_a_window_are_predicted_from_a_few_of_each(tmp_path):
    """Full layers keep 52 tokens and the others 6; at most seven of the nine layers are traced."""
    folder = write_model(tmp_path, "gemma2", sliding_window=SHORT_WINDOW, num_hidden_layers=9)
    settings = {"evaluation.generation": {"examples": 16, "max_new_tokens": 20}}
    recipe = with_settings(tiny_recipe(folder, {"type": "lora", "rank": 4}, 32, batch_size=16), settings)
    assert [len(run) for run in Stack(build_blueprint(recipe, CPU).fake.model).runs] == [5, 4]
    assert_predicted(recipe, real_model(recipe))


def test_generation_is_predicted(tmp_path):
    folder = write_model(tmp_path, "llama", num_hidden_layers=9)
    settings = {"evaluation.metrics": ["bleu"], "evaluation.generation": {"max_new_tokens": 20, "beams": 2}}
    recipe = with_settings(tiny_recipe(folder, {"type": "prefix", **METHODS["prefix"]}, 32, batch_size=4), settings)
    answers = build_blueprint(recipe, CPU).answers
    assert (answers.rows, answers.new_tokens, answers.beams) == (4, 20, 2)
    assert_predicted(recipe, real_model(recipe))


@pytest.mark.parametrize(
    ("settings", "absent"),
    [
        ({"evaluation.generation": {"examples": 0}}, {"generation"}),
        ({"evaluation.generation": {"examples": 1, "max_new_tokens": 8}}, set()),
        ({"data.evaluation": None, "evaluation.generation": {"examples": 1}}, {"evaluation", "generation"}),
    ],
)
def test_what_a_run_does_not_do_is_no_phase_of_its_plan(tmp_path, settings, absent):
    recipe = with_settings(tiny_recipe(write_model(tmp_path, "opt"), {"type": "bitfit"}), settings)
    phases = {"load", "first_step", "steady_step", "evaluation", "generation", "save"} - absent
    assert predict(build_blueprint(recipe, CPU)).phases.keys() == phases


def test_a_model_without_a_limit_of_positions_is_planned(tmp_path):
    folder = write_model(tmp_path, "qwen2", max_position_embeddings=-1)
    settings = {"evaluation.generation": {"examples": 1, "max_new_tokens": 100}}
    recipe = with_settings(tiny_recipe(folder, {"type": "prefix", "length": 5}, 16), settings)
    assert build_blueprint(recipe, CPU).answers == Answers(1, 16, 100)


def test_generation_that_cannot_be_measured_is_left_out_with_a_note(tmp_path, monkeypatch):
    def unknown_cache(output):
        raise RuntimeError("a ring buffer\nat line 3")

    recipe = tiny_recipe(write_model(tmp_path, "llama"), {"type": "full"})
    recipe = with_settings(recipe, {"evaluation.generation": {"examples": 1, "max_new_tokens": 8}})
    monkeypatch.setattr("peftlab.memory.generation.find_cache", unknown_cache)
    planned = predict(build_blueprint(recipe, CPU))
    model, ids, probe = real_model(recipe), torch.ones(1, 8, dtype=torch.int64), Probe(CPU)
    with probe.alone("generation", model):
        write_last_token(model, ids, ids, Answers(1, 8, 8))
    reason = "The memory of generation cannot be measured for this model (a ring buffer);"
    for report in (planned, probe.report()):
        assert "generation" not in report.phases
        assert len(report.notes) == 1 and report.notes[0].startswith(reason)
    assert planned.phases["steady_step"] > 0


def test_running_out_of_memory_while_generating_is_not_a_note(tmp_path, monkeypatch):
    def no_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = real_model(tiny_recipe(write_model(tmp_path, "llama"), {"type": "full"}))
    ids = torch.ones(1, 8, dtype=torch.int64)
    monkeypatch.setattr(type(model), "forward", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        write_last_token(model, ids, ids, Answers(1, 8, 8))
