"""What the trial steps made is freed before training begins, so that training has the memory that was planned."""

from __future__ import annotations

import gc
import weakref

from peftlab.memory.probe import Probe
from peftlab.recipe.schema import Recipe
from peftlab.runs.bench import prepare
from peftlab.runs.setup import build_setup, renew_optimizer
from peftlab.training.preflight import HeldOut, measure_longest
from peftlab.training.stop import Stop
from peftlab.world.open import open_world
from tests.runs.recipes import short_sections


def test_the_states_of_the_trial_steps_are_freed_with_their_optimizer(tmp_path):
    recipe = Recipe.model_validate(short_sections("lora", tmp_path))
    bench = prepare(recipe, open_world("cpu"))
    model = bench.apply().model
    setup = build_setup(bench, model, Stop())
    measure_longest(setup, model, HeldOut(), Probe(bench.device))
    states = [weakref.ref(value) for state in setup.optimizer.state.values() for value in state.values()]
    assert states
    gc.disable()  # a cycle of references is freed at some later time
    try:
        renew_optimizer(setup)
        assert not [one for one in states if one() is not None]
    finally:
        gc.enable()
