"""Every strategy that divides: two processes train as one does, and resume what was killed to the same bytes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from peftlab.checkpoint.manifest import read_manifest
from peftlab.checkpoint.parts import count_parts
from peftlab.errors import UsageError
from peftlab.recipe.schema import Recipe
from peftlab.runs.directory import RunDirectory
from peftlab.runs.display import NoDisplay
from peftlab.runs.planner import Planner
from peftlab.runs.run import train
from peftlab.runs.verify import differing, load_final
from peftlab.world.open import STRATEGIES, refuse_recipe
from peftlab.world.request import variables_of
from tests.runs.pairs import Pair
from tests.runs.recipes import METHODS, shallow_sections
from tests.world.runs import (
    FSDP2,
    OFFLOADED,
    STEPS,
    TRAINED,
    even_recipe,
    gradients_of,
    losses_of,
    small_recipe,
    with_deepspeed,
)

WHOLE, HALF = 1.0, 0.5
# The largest relative difference of a loss: measured up to 1.9e-7, two or three of float32's last bits.
LOSS = 5e-7


@dataclass(frozen=True)
class Case:
    """A strategy: what a launcher sets, what it can train, and which share of one process's bytes each of two has.

    `alone` are the micro-batches of a step of one process where two have two; `resumed` is set for a killed run.
    `gradient` is the largest difference of a gradient, of up to .0015 to .03, beside a hundred thousandth of itself.
    """

    environment: Mapping[str, str]
    methods: tuple[str, ...]
    shares: Mapping[str, float]
    parts: bool = True
    recipe: Callable[..., Recipe] = small_recipe
    alone: int = 4
    resumed: Mapping[str, str] | None = None
    normal: tuple[str, ...] = ()
    gradient: float = 3e-8


# QLoRA under FSDP 2 is the sample of the normal suite.
SIX = ("qlora", "lora", "full", "last layer", "adapters", "bitfit", "prefix")
STATES = {"optimiser_state": HALF}
CASES = {
    "fsdp2": Case(
        FSDP2,
        SIX,
        STATES | {"frozen_weights": HALF, "trainable_weights": HALF, "quantisation_state": WHOLE},
        resumed=OFFLOADED,
        normal=("qlora", ""),
        gradient=1e-8,
    ),
    # DeepSpeed updates a copy of each process's part.
    "zero2": Case(
        variables_of("zero2"),
        (*SIX, "fp4"),
        STATES | {"frozen_weights": WHOLE, "trainable_weights": WHOLE + HALF},
        parts=False,
        gradient=1e-9,  # with the speed-ups of one process
    ),
    "zero3": Case(
        variables_of("zero3"),
        (*SIX, "fp4", "dora"),
        STATES | {"frozen_weights": HALF, "trainable_weights": WHOLE},
    ),
    # Embeddings and head are whole; so are feed-forward layers with adapters.
    "tensor": Case(
        variables_of("tensor"),
        ("lora", "full", "last layer", "adapters", "bitfit"),
        {},
        recipe=even_recipe,
        alone=2,
        gradient=6e-8,
    ),
}


def marked(strategy: str, method: str = "") -> pytest.param:
    marks = [] if method in CASES[strategy].normal else [pytest.mark.slow]
    marks += [with_deepspeed] if STRATEGIES[strategy].package else []
    return pytest.param((strategy, method), marks=marks, id=f"{strategy} {method}".strip())


@pytest.fixture(
    scope="module", params=[marked(name, method) for name, case in CASES.items() for method in case.methods]
)
def pair(request, tmp_path_factory):
    """A strategy's case, and the folders of a run in one process and in two; as many rows a step."""
    strategy, method = request.param
    case, folder = CASES[strategy], tmp_path_factory.mktemp(strategy)
    two = Pair(case.recipe(TRAINED[method], folder / "two", 2, plan="report"), folder, environment=case.environment)
    assert two.wait() == [0, 0], two.outputs()
    train(case.recipe(TRAINED[method], folder / "one", case.alone), display=NoDisplay())
    return strategy, folder / "one", folder / "two"


def results_of(pair) -> list:
    return [RunDirectory.open(folder).read_result() for folder in pair[1:]]


def test_losses_and_gradients_are_those_of_one_process(pair):
    strategy, one, two = pair
    assert losses_of(two) == pytest.approx(losses_of(one), rel=LOSS) and len(losses_of(one)) >= STEPS + 2
    theirs, ours = gradients_of(one), gradients_of(two)
    moving = [gradient for gradient in theirs if gradient.abs().max() > 1e-7]
    assert len(moving) >= len(theirs) / 2 > 0, "an adapter's second factor starts at zero, so that the first has none"
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=CASES[strategy].gradient)


def test_the_audit_is_clean_and_counts_are_those_of_one_process(pair):
    one, two = results_of(pair)
    assert two.environment["strategy"] == pair[0] and two.parameters == one.parameters
    assert two.audit is not None and two.audit.clean and two.audit.steps == STEPS
    assert two.progress == one.progress and two.examples == one.examples
    assert two.metrics["after"]["loss"] == pytest.approx(one.metrics["after"]["loss"], rel=LOSS)


def test_each_process_has_its_share_of_weights_and_states(pair):
    one, two = results_of(pair)
    ours, theirs = (result.memory["process"].categories for result in (two, one))
    for name, share in CASES[pair[0]].shares.items():
        # Counts of steps, and rows that cannot be halved.
        assert ours[name] == pytest.approx(share * theirs[name], rel=0.04, abs=1000), name
    assert sum(ours.values()) < 0.95 * sum(theirs.values()) or pair[0] == "zero2"


def test_the_plan_has_the_state_of_a_process(pair):
    two = results_of(pair)[1].memory
    planned, measured = two["predicted"].categories, two["process"].categories
    for name in ("frozen_weights", "trainable_weights", "optimiser_state"):
        # A buffer of 256 bytes, that of rotary frequencies, is all that full fine-tuning freezes.
        assert planned[name] == pytest.approx(measured[name], rel=0.02, abs=256), name


def test_the_loss_without_logits_is_used_where_the_head_is_whole(pair):
    """What the report says is what the steps do: a process that has parts of the head makes logits."""
    (loss,) = [switch for switch in results_of(pair)[1].speed.switches if switch.name == "loss"]
    assert loss.used == (pair[0] in ("zero2", "tensor")), loss.reason
    assert loss.used or "divides them among processes" in loss.reason


def test_the_peaks_of_a_process_are_as_planned(pair):
    """Within 2 %; under ZeRO-3 within 0.3 %.

    gloo's thread frees what it has sent when it comes to run: under FSDP 2 a first step may have a layer more, under
    ZeRO-3 any phase a layer's largest weight.
    """
    two = results_of(pair)[1]
    planned, measured = (two.memory[source].phases for source in ("predicted", "measured"))
    recipe = Recipe.model_validate(two.recipe)
    late = _late_bytes(recipe, pair[0])
    exact = pair[0] == "zero3"
    too_low, too_high = (0.997, 1.003) if exact else (0.98, 1.02)
    for phase in ("first_step", "steady_step", "evaluation", "generation", "save"):
        more = late if phase == "first_step" or exact else 0
        assert too_low * measured[phase] - more <= planned[phase] <= too_high * measured[phase], phase
    assert planned["load"] == pytest.approx(measured["load"], rel=0.02)


def _late_bytes(recipe: Recipe, strategy: str) -> int:
    """Return the bytes that a process may have gathered for the module before."""
    layer = [one.whole for one in Planner(torch.device("cpu")).blueprint(recipe).weights if one.layer == 0]
    return {"fsdp2": sum(layer), "zero3": max(layer)}.get(strategy, 0)


def test_what_is_saved_is_the_same_folder_as_from_one_process(pair):
    _, one, two = pair
    ours, theirs = (RunDirectory.open(folder).weights for folder in (two, one))
    assert sorted(path.name for path in ours.iterdir()) == sorted(path.name for path in theirs.iterdir())
    for path in theirs.glob("*.safetensors"):
        found, wanted = load_file(ours / path.name), load_file(path)
        assert {name: (t.shape, t.dtype) for name, t in found.items()} == {
            name: (t.shape, t.dtype) for name, t in wanted.items()
        }
        for name, tensor in wanted.items():  # Adam divides small gradients by their size
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=2e-3)


def test_a_checkpoint_has_half_of_the_trained_state_from_each_process(pair):
    strategy, one, two = pair
    folder, whole = (run / "checkpoints" / "step-000003" for run in (two, one))
    assert count_parts(folder) == (2 if CASES[strategy].parts else 0) and count_parts(whole) == 0
    if CASES[strategy].parts:
        sizes = [(folder / f"part-0000{number}.safetensors").stat().st_size for number in range(2)]
        assert sizes[0] == pytest.approx(sizes[1], rel=0.1)


def test_the_fingerprints_see_the_scales_of_packed_weights(pair):
    """A run on one process and one on two that divide by rows have the same frozen bytes, scales included."""
    manifests = [read_manifest(folder / "checkpoints" / "step-000003").facts for folder in pair[1:]]
    assert manifests[0]["frozen"] == manifests[1]["frozen"] or pair[0] != "fsdp2"


@pytest.mark.parametrize("strategy", [marked(name) for name in CASES])
def test_a_killed_run_resumes_to_the_same_bytes_and_in_one_process_with_a_note(tmp_path, strategy):
    name, _ = strategy
    case = CASES[name]
    environment = case.resumed or case.environment

    def recipe(folder: str, steps: int) -> Recipe:
        made = case.recipe(METHODS["lora"] | {"dropout": 0.1}, tmp_path / folder, 1, save_every=2)
        training = made.training.model_copy(update={"steps": steps, "schedule": "constant"})
        return made.model_copy(update={"training": training})

    killed = Pair(recipe("killed", 200), tmp_path, environment=environment)
    killed.wait_for_step(4)
    killed.processes[1].kill()
    assert killed.wait() == [12, -signal.SIGKILL]
    assert "error: process 1 of 2" in killed.outputs()[0].splitlines()[-1]
    steps = killed.result()["progress"]["step"] + 3
    for folder, resume in (("killed", True), ("straight", False)):
        two = Pair(recipe(folder, steps), tmp_path, resume=resume, environment=environment)
        assert two.wait() == [0, 0], two.outputs()
    assert all(differing(load_final(tmp_path / "killed"), load_final(tmp_path / "straight")).values())
    alone = train(recipe("killed", steps + 1), resume=True, display=NoDisplay()).resumes[-1]
    assert alone.step == steps and not alone.exact and f"strategy: {name} -> single" in alone.reasons
    assert "processes: 2 -> 1" in alone.reasons


@pytest.mark.slow
@with_deepspeed
def test_what_zero_3_divides_by_numbers_and_fsdp_2_by_rows_each_resumes_of_the_other(tmp_path: Path):
    """As many processes, other parts."""
    former = None
    for steps, strategy in enumerate(("zero3", "fsdp2", "zero3"), start=3):
        recipe = small_recipe(METHODS["lora"], tmp_path / "run", 1, save_every=2)
        training = recipe.training.model_copy(update={"steps": steps, "schedule": "constant"})
        recipe = recipe.model_copy(update={"training": training})
        two = Pair(recipe, tmp_path, resume=former is not None, environment=variables_of(strategy))
        assert two.wait() == [0, 0], two.outputs()
        if former:
            assert not two.result()["resumes"][-1]["exact"]
            assert f"strategy: {former} -> {strategy}" in two.result()["resumes"][-1]["reasons"]
        former = strategy
    losses = losses_of(tmp_path / "run")
    assert max(losses[-3:]) < 1.2 * losses[0]


EIGHT_BIT = ("method", METHODS["qlora"] | {"quantization": "int8"}, "set method.quantization=nf4")
PROMPT = ("method", METHODS["prefix"] | {"kind": "prompt"}, "set method.kind=prefix or launch with DDP")
PROJECTION = ("method", METHODS["prefix"] | {"projection": True}, "set method.projection=false or launch with DDP")
STATES_8_BIT = ("training", {"optimizer": "adamw_8bit"}, "set training.optimizer=adamw")
HALF_PRECISION = ("training", {"precision": "float16"}, "set training.precision=bfloat16")
IN_BACKWARD = ("training", {"optimizer_in_backward": True, "clip": None}, "set it to false, or use one process")
NEW_TOKENS = ("model", {"add_tokens": ["north"]}, "remove model.add_tokens")
AVERAGED = ("training", {"average": {"ema": 0.9}}, "training.average.ema")
REFUSED = {
    "fsdp2": (EIGHT_BIT, PROMPT, PROJECTION, STATES_8_BIT, HALF_PRECISION, IN_BACKWARD),
    "zero2": (STATES_8_BIT, HALF_PRECISION, AVERAGED, IN_BACKWARD),
    "zero3": (EIGHT_BIT, PROMPT, STATES_8_BIT, HALF_PRECISION, AVERAGED, NEW_TOKENS),
    "tensor": (
        ("method", METHODS["qlora"], "set method.type=lora"),
        ("method", METHODS["prefix"], "a prefix has the keys of all heads"),
        STATES_8_BIT,
        HALF_PRECISION,
        AVERAGED,
    ),
}


@pytest.mark.parametrize(
    ("strategy", "section", "settings", "reason"),
    [(strategy, *one) for strategy, refused in REFUSED.items() for one in refused],
)
def test_what_cannot_work_is_refused_in_one_line_before_anything_is_loaded(
    tmp_path, strategy, section, settings, reason
):
    sections = shallow_sections("lora", tmp_path, steps=1)
    sections[section] = settings if section == "method" else sections[section] | settings
    closed: list[bool] = []
    world = STRATEGIES[strategy].__new__(STRATEGIES[strategy])
    world.device = torch.device("cpu")
    world.close = lambda: closed.append(True)
    with pytest.raises(UsageError, match=reason) as error:
        refuse_recipe(world, Recipe.model_validate(sections))
    assert "\n" not in str(error.value) and closed
    assert not type(world).why_not(Recipe.model_validate(shallow_sections("lora", tmp_path, steps=1)), world.device)
