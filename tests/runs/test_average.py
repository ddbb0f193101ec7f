"""Averages of weights: the arithmetic worked out by hand, exact resuming, and which weights are the result."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from peftlab.checkpoint.tensors import load_state
from peftlab.comparison.identity import hash_run
from peftlab.errors import RecipeError, StoppedError
from peftlab.optimization.average import averaged, averages, keep_average, mean_of, steps_in_mean, take_average
from peftlab.recipe.load import model_recipe
from peftlab.recipe.schema import Recipe
from peftlab.runs.directory import RunDirectory
from peftlab.runs.display import NoDisplay
from peftlab.runs.run import train
from peftlab.runs.use import evaluate
from tests.runs.pairs import Pair
from tests.runs.recipes import shallow_sections
from tests.world.runs import FSDP2


def stepped(optimizer: torch.optim.Optimizer, weight: torch.Tensor, gradients: list[float]) -> list[float]:
    """Return the average after each step."""
    found = []
    for gradient in gradients:
        weight.grad = torch.tensor([gradient])
        optimizer.step()
        found.append(next(average.item() for _, average in averages(optimizer)))
    return found


def test_the_average_is_the_one_worked_out_by_hand():
    weight = torch.nn.Parameter(torch.tensor([10.0]))
    optimizer = keep_average(torch.optim.SGD([weight], lr=1.0), 0.75)
    # Weights 8, 6, 4: the average begins with 8, then .75 * 8 + .25 * 6, then .75 * 7.5 + .25 * 4.
    assert stepped(optimizer, weight, [2.0, 2.0, 2.0]) == [8.0, 7.5, 6.625]
    with averaged(optimizer):
        assert weight.item() == 6.625
    assert weight.item() == 4.0
    take_average(optimizer)
    assert weight.item() == 6.625


def test_a_weight_without_gradients_has_no_average_until_it_gets_one():
    used, unused = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    optimizer = keep_average(torch.optim.AdamW([used, unused], lr=0.1), 0.5)
    used.grad = torch.ones(1)
    optimizer.step()
    assert [weight is used for weight, _ in averages(optimizer)] == [True]
    unused.grad = torch.ones(1)
    optimizer.step()  # AdamW would fail here, had the state of the other begun without its moments
    assert len(list(averages(optimizer))) == 2


def test_the_mean_of_states_is_their_sum_over_their_number():
    states = ({"w": torch.tensor([float(value), 1.0])} for value in (3, 6, 12))
    assert torch.allclose(mean_of(states)["w"], torch.tensor([7.0, 1.0]))


def recipe(folder: Path, average: dict, **run) -> Recipe:
    sections = shallow_sections("lora", folder, steps=6, batch_size=2, learning_rate=3e-2, schedule="constant")
    sections["training"]["average"] = average
    sections["data"] |= {"train_rows": 8, "evaluation_rows": 4, "max_length": 32}
    sections["evaluation"] = {"every": 2, "generation": {"examples": 0}}
    sections["run"] |= {"log_every": 1, "save_every": 1, "keep_checkpoints": 6} | run
    return Recipe.model_validate(sections)


def weights_after(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_state(RunDirectory(folder).checkpoints / f"step-{step:06}", "state")["weights"]


def saved(folder: Path) -> dict[str, torch.Tensor]:
    stored = load_file(folder / "weights" / "adapter_model.safetensors")
    return {name.removeprefix("base_model.model."): one for name, one in stored.items()}


@pytest.fixture(scope="module")
def ema(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ema")
    train(recipe(folder / "straight", {"ema": 0.5}), display=NoDisplay())
    return folder / "straight"


def halved(folder: Path) -> dict[str, torch.Tensor]:
    """Return the average with decay 0.5 of the weights after each of six steps, from their checkpoints."""
    expected = weights_after(folder, 1)
    for step in range(2, 7):
        expected = {name: (one + weights_after(folder, step)[name]) / 2 for name, one in expected.items()}
    return expected


def test_a_run_saves_and_evaluates_the_average_of_its_steps(ema):
    expected = halved(ema)
    for name, one in saved(ema).items():
        torch.testing.assert_close(one, expected[name], rtol=1e-5, atol=1e-7)
    result = RunDirectory.open(ema).read_result()
    assert result.metrics["after"]["loss"] == pytest.approx(evaluate(ema)["loss"], rel=1e-6)
    assert any("average of the weights up to step 6 (training.average.ema=0.5)" in note for note in result.notes)


def test_a_resumed_run_has_the_same_average(ema, tmp_path):
    with pytest.raises(StoppedError):
        train(recipe(tmp_path / "parts", {"ema": 0.5}, stop_after=3), display=NoDisplay())
    result = train(recipe(tmp_path / "parts", {"ema": 0.5}), resume=True, display=NoDisplay())
    assert result.resumes[0].exact
    assert result.metrics == RunDirectory.open(ema).read_result().metrics
    first, second = saved(ema), saved(tmp_path / "parts")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_the_plan_counts_the_copy(ema, tmp_path):
    plans = {}
    for name, average in (("none", {}), ("ema", {"ema": 0.9})):
        sections = recipe(tmp_path / name, average, plan="report", save_every=None).model_dump()
        sections["training"]["steps"] = 1
        result = train(Recipe.model_validate(sections), display=NoDisplay())
        assert result.parameters is not None
        plans[name] = result.memory
    extra = result.parameters.trainable * 4
    for source in ("predicted", "measured"):
        states = [plans[name][source].phases["steady_step"] for name in ("none", "ema")]
        assert states[1] - states[0] == pytest.approx(extra, rel=0.02)


def mean_of_three(folder: Path) -> dict[str, torch.Tensor]:
    return {name: sum(weights_after(folder, step)[name] for step in (4, 5, 6)) / 3 for name in weights_after(folder, 6)}


def test_the_mean_of_the_last_checkpoints_is_the_result(tmp_path):
    folder = tmp_path / "last"
    result = train(recipe(folder, {"last": 3}), display=NoDisplay())
    expected = mean_of_three(folder)
    for name, one in saved(folder).items():
        torch.testing.assert_close(one, expected[name], rtol=1e-5, atol=1e-7)
    assert any("mean of the weights of steps 4, 5, 6" in note for note in result.notes)


@pytest.mark.parametrize(
    ("step", "every", "count", "expected"),
    [(6, 1, 3, [4, 5, 6]), (6, 2, 2, [4, 6]), (7, 3, 2, [6, 7]), (7, 3, 4, [3, 6, 7]), (2, 3, 2, [2])],
)
def test_the_steps_of_a_mean_are_those_of_every_run(step, every, count, expected):
    assert steps_in_mean(step, every, count) == expected


@pytest.mark.parametrize("stops", [[3], [3, 5]])
def test_a_stop_between_checkpoints_leaves_the_mean_of_the_last_as_it_is(stops, tmp_path):
    """Its own checkpoints neither count nor replace the others."""
    asked = {"save_every": 2, "keep_checkpoints": 2}
    train(recipe(tmp_path / "straight", {"last": 2}, **asked), display=NoDisplay())
    for stop in stops:
        with pytest.raises(StoppedError):
            again = recipe(tmp_path / "parts", {"last": 2}, **asked, stop_after=stop)
            train(again, resume=stop != stops[0], display=NoDisplay())
    result = train(recipe(tmp_path / "parts", {"last": 2}, **asked), resume=True, display=NoDisplay())
    assert any("mean of the weights of steps 4, 6" in note for note in result.notes)
    assert result.resumes[-1].exact
    first, second = saved(tmp_path / "straight"), saved(tmp_path / "parts")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_other_steps_between_checkpoints_are_another_mean(tmp_path):
    with pytest.raises(StoppedError):
        train(recipe(tmp_path, {"last": 2}, save_every=2, stop_after=2), display=NoDisplay())
    result = train(recipe(tmp_path, {"last": 2}, save_every=3), resume=True, display=NoDisplay())
    assert not result.resumes[0].exact
    assert any("run.save_every: 2 -> 3" in reason for reason in result.resumes[0].reasons)
    assert hash_run(recipe(tmp_path, {"last": 2}, save_every=2)) != hash_run(recipe(tmp_path, {"last": 2}))
    assert hash_run(recipe(tmp_path, {}, save_every=2)) == hash_run(recipe(tmp_path, {}))


@pytest.mark.slow
@pytest.mark.parametrize(("average", "by_hand"), [({"ema": 0.5}, halved), ({"last": 3}, mean_of_three)])
def test_two_processes_that_divide_the_weights_save_and_evaluate_the_average(average, by_hand, tmp_path):
    """Checkpoints have whole weights; under FSDP 2 each process averages its half of them."""
    two = Pair(recipe(tmp_path / "two", average), tmp_path, environment=FSDP2)
    assert two.wait() == [0, 0], two.outputs()
    found, expected = saved(tmp_path / "two"), by_hand(tmp_path / "two")
    assert found and not all(torch.equal(one, weights_after(tmp_path / "two", 6)[name]) for name, one in found.items())
    for name, one in found.items():
        torch.testing.assert_close(one, expected[name], rtol=1e-5, atol=1e-7)
    result = RunDirectory.open(tmp_path / "two").read_result()
    assert result.environment["strategy"] == "fsdp2"
    assert result.metrics["after"]["loss"] == pytest.approx(evaluate(tmp_path / "two")["loss"], rel=1e-6)


@pytest.mark.slow
def test_the_best_average_is_kept_with_its_own_metric(tmp_path):
    folder = tmp_path / "best"
    result = train(recipe(folder, {"ema": 0.5}, keep="best"), display=NoDisplay())
    assert result.metrics["after"]["loss"] == pytest.approx(result.progress.best_metric, rel=1e-6)


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["training.average.last=3"], "is a mean of checkpoints; set run.save_every"),
        (["training.average.last=3", "run.save_every=1"], "needs run.keep_checkpoints of 3 at least"),
        (["training.average.last=2", "training.average.ema=0.9", "run.save_every=1"], "set ema or last, not both"),
        (["training.average.ema=1.0"], "must be a number greater than 0 and below 1 or null, got 1.0"),
    ],
)
def test_averages_that_cannot_be_made_are_refused(overrides, fault):
    with pytest.raises(RecipeError) as refused:
        model_recipe("builtin:tiny", ["method.type=lora", *overrides])
    assert fault in str(refused.value)
