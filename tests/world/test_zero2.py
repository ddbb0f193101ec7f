"""ZeRO-2: two processes that each have half of gradients and states train as one does."""

from __future__ import annotations

import importlib.util
import signal
from types import SimpleNamespace

import pytest
import torch

from peftlab.errors import MissingRequirementError, UsageError
from peftlab.optimizers.base import Optimizer
from peftlab.recipe.schema import Recipe
from peftlab.runs.directory import RunDirectory
from peftlab.runs.display import NoDisplay
from peftlab.runs.planner import Planner
from peftlab.runs.run import train
from peftlab.runs.verify import differing, load_final
from peftlab.world import zero2
from peftlab.world.open import open_world, refuse_recipe
from peftlab.world.request import variables_of
from peftlab.world.zero2 import Zero2
from tests.runs.pairs import Pair
from tests.runs.recipes import METHODS, shallow_sections
from tests.world.test_fsdp2 import STEPS, TRAINED, gradients_of, losses_of, small_recipe

ZERO2 = variables_of("zero2")
INSTALLED = importlib.util.find_spec("deepspeed") is not None
with_deepspeed = pytest.mark.skipif(not INSTALLED, reason="needs DeepSpeed: pip install 'peftlab[deepspeed]'")


@pytest.fixture(scope="module", params=list(TRAINED))
def pair(request, tmp_path_factory):
    """The folders of a run in one process and in two that divide gradients and states; as many rows a step."""
    folder = tmp_path_factory.mktemp("zero2")
    two = Pair(small_recipe(TRAINED[request.param], folder / "two", 2, plan="report"), folder, environment=ZERO2)
    assert two.wait() == [0, 0], two.outputs()
    train(small_recipe(TRAINED[request.param], folder / "one", 4), display=NoDisplay())
    return folder / "one", folder / "two"


@pytest.mark.slow
@with_deepspeed
def test_losses_and_gradients_are_those_of_one_process(pair):
    one, two = pair
    assert losses_of(two) == pytest.approx(losses_of(one), rel=1e-6) and len(losses_of(one)) >= STEPS + 2
    theirs, ours = gradients_of(one), gradients_of(two)
    assert sum(bool(gradient.abs().max() > 1e-7) for gradient in theirs) >= len(theirs) / 2
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
@with_deepspeed
def test_each_process_has_half_of_the_states_and_the_plan_says_so(pair):
    one, two = (RunDirectory.open(folder).read_result() for folder in pair)
    assert two.environment["strategy"] == "zero2" and two.parameters == one.parameters
    assert two.audit is not None and two.audit.clean and two.audit.steps == STEPS
    ours, theirs = (result.memory["process"].categories for result in (two, one))
    assert ours["frozen_weights"] == theirs["frozen_weights"]
    assert ours["optimiser_state"] == pytest.approx(theirs["optimiser_state"] / 2, rel=0.02)
    assert ours["trainable_weights"] == pytest.approx(1.5 * theirs["trainable_weights"], rel=0.02)
    planned, measured = (two.memory[source].phases for source in ("predicted", "measured"))
    # Never too low; too high by part of the bucket, which is not full where most is in use.
    bucket = theirs["trainable_weights"]
    for phase in ("first_step", "steady_step", "evaluation", "save"):
        assert 0.98 * measured[phase] <= planned[phase] <= 1.02 * measured[phase] + bucket, phase


@pytest.mark.slow
@with_deepspeed
def test_a_killed_run_resumes_to_the_same_bytes_and_in_one_process_with_a_note(tmp_path):
    def recipe(name: str, steps: int) -> Recipe:
        made = small_recipe(METHODS["lora"] | {"dropout": 0.1}, tmp_path / name, 1, save_every=2)
        training = made.training.model_copy(update={"steps": steps, "schedule": "constant"})
        return made.model_copy(update={"training": training})

    killed = Pair(recipe("killed", 200), tmp_path, environment=ZERO2)
    killed.wait_for_step(4)
    killed.processes[1].kill()
    assert killed.wait() == [12, -signal.SIGKILL]
    assert "error: process 1 of 2" in killed.outputs()[0].splitlines()[-1]
    steps = killed.result()["progress"]["step"] + 3
    for name, resume in (("killed", True), ("straight", False)):
        pair = Pair(recipe(name, steps), tmp_path, resume=resume, environment=ZERO2)
        assert pair.wait() == [0, 0], pair.outputs()
    assert all(differing(load_final(tmp_path / "killed"), load_final(tmp_path / "straight")).values())
    alone = train(recipe("killed", steps + 1), resume=True, display=NoDisplay())
    assert alone.resumes[-1].step == steps and not alone.resumes[-1].exact
    assert "strategy: zero2 -> single" in alone.resumes[-1].reasons


@pytest.mark.parametrize(
    ("section", "settings", "reason"),
    [
        ("training", {"optimizer": "adamw_8bit"}, "set training.optimizer=adamw or sgd"),
        ("training", {"precision": "float16"}, "set training.precision=bfloat16"),
        ("training", {"average": {"ema": 0.9}}, "training.average.ema, which evaluations need whole"),
        ("training", {"optimizer_in_backward": True, "clip": None}, "set it to false, or use one process"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line_before_anything_is_loaded(tmp_path, section, settings, reason):
    sections = shallow_sections("lora", tmp_path, steps=1)
    sections[section] |= settings
    closed: list[bool] = []
    world = Zero2.__new__(Zero2)
    world.device = torch.device("cpu")
    world.close = lambda: closed.append(True)
    with pytest.raises(UsageError, match=reason) as error:
        refuse_recipe(world, Recipe.model_validate(sections))
    assert "\n" not in str(error.value) and closed


@pytest.mark.parametrize(("variable", "setting"), zero2.UNREAD.items())
def test_settings_of_a_launcher_that_are_not_read_are_refused(tmp_path, monkeypatch, variable, setting):
    recipe = Recipe.model_validate(shallow_sections("lora", tmp_path, steps=1))
    monkeypatch.setenv(variable, "none")
    assert not Zero2.why_not(recipe, torch.device("cpu"))
    monkeypatch.setenv(variable, "cpu")
    assert Zero2.why_not(recipe, torch.device("cpu")).startswith(f"{setting} is not read")


def test_an_optimizer_that_needs_whole_tensors_is_refused(tmp_path):
    recipe = Recipe.model_validate(shallow_sections("lora", tmp_path, steps=1))
    assert recipe.training.optimizer.elementwise and not Optimizer(type="new").elementwise
    training = SimpleNamespace(
        optimizer=Optimizer(type="new"), precision="auto", average=recipe.training.average, optimizer_in_backward=False
    )
    unknown = SimpleNamespace(model=recipe.model, training=training)
    assert "divides the optimizer's states" in Zero2.why_not(unknown, torch.device("cpu"))


def test_without_deepspeed_one_line_says_what_to_install(monkeypatch):
    for name, value in ZERO2.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingRequirementError, match=r"pip install 'peftlab\[deepspeed\]'"):
        open_world("cpu")


def test_a_plan_of_a_device_has_its_part_of_the_states(tmp_path):
    """By hand: half of Adam's two moments, and a second copy of half of what trains."""
    recipe = Recipe.model_validate(shallow_sections("lora", tmp_path, steps=1))
    alone, pair = (Planner(torch.device("cpu"), processes=count, strategy="zero2")(recipe) for count in (1, 2))
    assert pair.categories["frozen_weights"] == alone.categories["frozen_weights"]
    assert pair.categories["optimiser_state"] == pytest.approx(alone.categories["optimiser_state"] / 2, rel=0.01)
    assert pair.categories["trainable_weights"] == pytest.approx(1.5 * alone.categories["trainable_weights"], rel=0.01)
    trained = alone.categories["trainable_weights"]
    assert pair.communication.sent_bytes == {"weights": trained // 2, "gradients": trained // 2}
