"""Updates inside the backward pass: the same weights, fewer bytes, honest about a gradient that is not finite."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from peftlab.errors import DivergedError
from peftlab.models.recompute import recompute_activations
from peftlab.optimization.finite import FiniteGuard
from peftlab.optimization.in_backward import InBackward
from peftlab.optimization.step import optimizer_step
from peftlab.recipe.checks import find_contradictions
from peftlab.recipe.schema import Recipe
from peftlab.runs.display import NoDisplay
from peftlab.runs.run import train
from tests.memory.real import PLAIN_STEP, tiny_recipe, track, write_model
from tests.memory.test_predict import assert_alike, predicted
from tests.runs.recipes import shallow_sections
from tests.training.small import small_recipe, small_setup, tiny_llama


def setup_of(in_backward: bool, **changes):
    setup = small_setup(tiny_llama(**changes), batch_size=3)
    for group in setup.optimizer.param_groups:
        group["weight_decay"] = 0.1
    return replace(setup, in_backward=InBackward(setup.optimizer)) if in_backward else setup


def take_steps(setup, steps: int = 5) -> list:
    setup.model.train()
    return [optimizer_step(setup, setup.rows.batches(n), setup.rows.count(n).targets) for n in range(1, steps + 1)]


@pytest.mark.parametrize("recomputed", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_weights_states_and_norms_are_those_of_updates_after_the_backward_pass(tied, recomputed):
    results = []
    for in_backward in (False, True):
        setup = setup_of(in_backward, tie_word_embeddings=tied)
        recompute_activations(setup.model, recomputed)
        found = take_steps(setup)
        parameters = [parameter for group in setup.optimizer.param_groups for parameter in group["params"]]
        states = [tensor for one in parameters for tensor in setup.optimizer.state[one].values()]
        results.append([*setup.model.parameters(), *states, *(one.losses for one in found)])
        norms = torch.stack([one.norm for one in found])
        torch.testing.assert_close(norms, results[0][-1] if in_backward else norms, rtol=1e-5, atol=0)
        results[-1].append(norms)
    assert all(torch.equal(one, other) for one, other in zip(*(part[:-1] for part in results), strict=True))
    assert all(parameter.grad is None for parameter in results[1][:3])


def test_hooks_can_be_removed():
    setup = setup_of(True)
    setup.in_backward.remove()
    optimizer_step(replace(setup, in_backward=None), setup.rows.batches(1), 1)
    assert setup.in_backward._norms == []


def test_gradients_never_live_all_at_once(tmp_path):
    model = write_model(tmp_path, "llama", num_hidden_layers=6)
    peaks = []
    for in_backward in (False, True):
        recipe = tiny_recipe(model, {"type": "full"}, 16, batch_size=2, clip=None, optimizer_in_backward=in_backward)
        peaks.append(track(recipe, ragged=False).report())
    assert peaks[1].categories["gradients"] < 0.3 * peaks[0].categories["gradients"]
    assert peaks[1].peak_bytes < peaks[0].peak_bytes


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_plan_follows(tmp_path, optimizer):
    model = write_model(tmp_path, "llama", num_hidden_layers=6)
    settings = {"batch_size": 2, "clip": None, "optimizer": optimizer, "optimizer_in_backward": True}
    recipe = tiny_recipe(model, {"type": "full"}, 16, **settings, speed=PLAIN_STEP["training.speed"])
    assert_alike(predicted(recipe, ragged=True), recipe, ragged=True)


def test_a_gradient_that_is_not_finite_stops_all_further_updates_and_says_what_was_changed():
    setup = setup_of(True)
    guard = FiniteGuard(setup, setup.rows)
    before = {name: p.detach().clone() for name, p in setup.model.named_parameters()}
    bad = setup.model.model.layers[0].self_attn.q_proj.weight
    bad.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(DivergedError, match=r"gradient norm is not finite .* backward pass had updated"):
        optimizer_step(
            setup,
            setup.rows.batches(1),
            setup.rows.count(1).targets,
            before_update=lambda result: guard.observe(1, result),
        )
    changed = {name for name, p in setup.model.named_parameters() if not torch.equal(p, before[name])}
    assert len(changed) == setup.in_backward.changed and "lm_head.weight" in changed
    assert "model.layers.0.self_attn.q_proj.weight" not in changed and "model.embed_tokens.weight" not in changed


def test_a_loss_that_is_not_finite_changes_nothing():
    setup = setup_of(True)
    guard = FiniteGuard(setup, setup.rows)
    before = [p.detach().clone() for p in setup.model.parameters()]
    with torch.no_grad():
        setup.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(DivergedError, match="No weight was changed by this step"):
        optimizer_step(setup, setup.rows.batches(1), 1, before_update=lambda result: guard.observe(1, result))
    same = [torch.equal(p, old) for p, old in zip(setup.model.parameters(), before, strict=True)]
    assert sum(same) == len(same) - 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "set training.clip to null"),
        ({"clip": None, "gradient_accumulation": 2}, "set training.gradient_accumulation to 1"),
        ({"clip": None, "fit": True}, "training.fit may split a step"),
        ({"clip": None, "precision": "float16"}, "float16's scaler"),
    ],
)
def test_what_needs_all_gradients_is_refused(changes, told):
    recipe = small_recipe(**{"clip": 1.0, "optimizer_in_backward": True, **changes})
    found = [message for path, message in find_contradictions(recipe, ()) if path[-1] == "optimizer_in_backward"]
    assert len(found) == 1 and told in found[0]
    assert find_contradictions(small_recipe(optimizer_in_backward=True), ()) == []


def test_a_run_resumes_exactly_and_its_audit_saw_the_gradients(tmp_path):
    def run(name: str, resume: bool = False, **limits):
        sections = shallow_sections("full", tmp_path / name, steps=5, clip=None, optimizer_in_backward=True)
        sections["evaluation"] = {"metrics": []}
        sections["run"] |= {"save_every": 1, **limits}
        return train(Recipe.model_validate(sections), display=NoDisplay(), resume=resume)

    straight = run("a")
    with pytest.raises(Exception, match="stop"):
        run("b", stop_after=2)
    resumed = run("b", resume=True)
    assert resumed.resumes[0].exact and straight.audit.without_gradient == resumed.audit.without_gradient == []
    weights = [sorted((tmp_path / name / "weights").glob("*.safetensors")) for name in ("a", "b")]
    assert [one.read_bytes() for one in weights[0]] == [one.read_bytes() for one in weights[1]]
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("a", "b")]
    lines = [[line for line in log if '"loss"' in line] for log in logs]
    assert len(lines[0]) == len(lines[1])
