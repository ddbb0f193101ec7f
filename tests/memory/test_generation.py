"""What writing answers holds: the probe of two passes against transformers' own generation, and the plan of it."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

from peftlab.memory.blueprint import build_blueprint
from peftlab.memory.fit import with_settings
from peftlab.memory.generation import Answers, write_last_token
from peftlab.memory.predict import predict
from peftlab.memory.probe import Probe
from tests.memory.real import CPU, METHODS, prepare, rows_of, tiny_recipe, write_model

ROWS, NEW = 3, 30


def tracked(model, run) -> int:
    probe = Probe(CPU)
    with torch.no_grad(), probe.alone("generation", model):
        run()
    return probe.report().phases["generation"]


@pytest.mark.parametrize("length", [8, 25])
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize(("family", "name"), [("llama", "lora"), ("gpt2", "prefix"), ("qwen2", "prompt")])
def test_two_passes_hold_what_generating_every_token_holds(tmp_path, family, name, beams, length):
    """Oracle: transformers' generate, watched from end to end. Short prompts peak at the end, long ones at once."""
    method = {"type": "prefix", "kind": "prompt", "length": 5} if name == "prompt" else {"type": name, **METHODS[name]}
    recipe = tiny_recipe(write_model(tmp_path, family), method)
    model = prepare(recipe, rows_of(recipe, ragged=False)).model.eval()
    ids = torch.ones(ROWS, length, dtype=torch.int64)
    mask = torch.ones_like(ids)
    whole = GenerationConfig(max_new_tokens=NEW, min_new_tokens=NEW, num_beams=beams, pad_token_id=0)
    every = tracked(model, lambda: model.generate(input_ids=ids, attention_mask=mask, generation_config=whole))
    last = tracked(model, lambda: write_last_token(model, ids, mask, Answers(ROWS, length, NEW, beams)))
    # Beam search's own scores and indices weigh something on a model of 64 hidden units.
    assert last == pytest.approx(every, rel=0.02 if beams == 1 else 0.05)


def test_generation_is_predicted(tmp_path):
    folder = write_model(tmp_path, "llama", num_hidden_layers=9)
    settings = {"evaluation.metrics": ["bleu"], "evaluation.generation": {"max_new_tokens": 20, "beams": 2}}
    recipe = with_settings(tiny_recipe(folder, {"type": "prefix", **METHODS["prefix"]}, 32, batch_size=4), settings)
    blueprint = build_blueprint(recipe, CPU)
    answers = blueprint.answers
    assert (answers.rows, answers.new_tokens, answers.beams) == (4, 20, 2)
    setup = prepare(recipe, rows_of(recipe, ragged=False))
    ids = torch.ones(answers.rows, answers.length, dtype=torch.int64)
    states = 8 * sum(p.numel() for p in setup.model.parameters() if p.requires_grad)
    measured = tracked(setup.model.eval(), lambda: write_last_token(setup.model, ids, ids, answers))
    assert predict(blueprint).phases["generation"] == pytest.approx(measured + states, rel=0.02)


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
