"""A task, a loss, rows, an optimiser or a metric is added in one file and one line: here toys, in real runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from peftlab.data.batches import Padded
from peftlab.data.token_rows import IGNORED
from peftlab.errors import RecipeError, StoppedError, StorageError, UsageError
from peftlab.metrics import METRICS, Metric
from peftlab.optimizers import OPTIMIZERS, SGD
from peftlab.recipe import load_recipe
from peftlab.recipe.json_schema import editor_schema
from peftlab.recipe.schema import Recipe
from peftlab.runs.bench import prepare as prepare_bench
from peftlab.runs.directory import RunDirectory
from peftlab.runs.display import NoDisplay
from peftlab.runs.run import train
from peftlab.runs.setup import build_rows
from peftlab.runs.use import evaluate
from peftlab.runs.verify import differing, load_final
from peftlab.tasks import TASKS
from peftlab.world.open import open_world
from tests.runs.recipes import shallow_sections
from tests.tasks.tagging import METHODS, tagging_recipe, write_model, write_sentences
from tests.tasks.toys.rmsprop import RMSprop
from tests.tasks.toys.second_half import SMOOTHING, SecondHalf, Smoothed, ignore_first_half
from tests.tasks.toys.sequential import InOrder

STEPS = 6


def recipe(folder: Path, run: dict[str, Any] | None = None, **sections: dict[str, Any]) -> Recipe:
    """Return six steps of LoRA on the shipped model; `sections` change fields of its sections."""
    changed = {"run": {"save_every": 3, "log_every": 1, **(run or {})}, **sections}
    base = shallow_sections("lora", folder, steps=STEPS)
    base["evaluation"] = {"generation": {"examples": 0}}
    base["data"] |= {"train_rows": 20, "evaluation_rows": 4, "max_length": 48}
    return Recipe.model_validate({name: fields | changed.get(name, {}) for name, fields in base.items()})


def start(one: Recipe, **options):
    return train(one, display=NoDisplay(), **options)


def assert_resumes(one: Recipe, stopped: Recipe, straight: Path) -> None:
    """Stop in the middle, resume, and compare with a straight run to the byte."""
    with pytest.raises(StoppedError):
        start(stopped)
    resumed = start(one, resume=True)
    assert [(report.step, report.exact) for report in resumed.resumes] == [(2, True)]
    same = differing(load_final(straight), load_final(Path(one.run.output)))
    assert len(same) > 10 and all(same.values())


def losses_of(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["event"] == "train"]


def test_a_task_with_a_loss_of_its_own_is_planned_tried_trained_and_evaluated(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, SecondHalf.name, SecondHalf())
    monkeypatch.setattr(Smoothed, "seen", [])
    one = recipe(tmp_path / "run", {"plan": "report"}, model={"task": SecondHalf.name})
    result = start(one)
    planned, run = ([call for call, fake in Smoothed.seen if fake is kind] for kind in (True, False))
    assert planned.count("total") >= 2 and planned.count("rows") >= 2, "the plan traces the task's own loss"
    assert run.count("total") == 2 + STEPS, "two trial steps, then the loop's"
    measured, predicted = result.memory["measured"].phases, result.memory["predicted"].phases
    for phase in ("first_step", "steady_step", "evaluation"):
        assert predicted[phase] == pytest.approx(measured[phase], rel=0.02), phase
    assert result.metrics["after"]["loss"] < result.metrics["before"]["loss"]
    assert evaluate(tmp_path / "run")["loss"] == pytest.approx(result.metrics["after"]["loss"], abs=1e-6)
    assert losses_of(tmp_path / "run")[0] == pytest.approx(loss_by_hand(one, first_rows(one), SMOOTHING), rel=1e-5)


@torch.no_grad()
def loss_by_hand(one: Recipe, numbers: list[int], smoothing: float) -> float:
    """Return the base model's loss, which LoRA starts as, on training rows of these numbers, a target at a time."""
    bench = prepare_bench(one, open_world("cpu"))
    model, losses = bench.base.model.eval(), []
    for row in (bench.dataset.train[number] for number in numbers):
        ids = torch.from_numpy(row.input_ids.copy()).long()
        logits = model(ids[None]).logits[0]
        for place in range(1, len(ids)):
            if row.labels[place] >= 0:
                losses.append(functional.cross_entropy(logits[place - 1], ids[place], label_smoothing=smoothing))
    return float(torch.stack(losses).mean())


def first_rows(one: Recipe) -> list[int]:
    return build_rows(prepare_bench(one, open_world("cpu")), Padded(0)).numbers(1)[0]


def test_the_toy_task_ignores_first_halves():
    assert ignore_first_half(np.array([5, 6, 7, 8, 9])).tolist() == [IGNORED, IGNORED, 7, 8, 9]


def test_a_loss_of_another_task_is_the_one_of_that_task_only(tmp_path):
    with pytest.raises(ValueError, match="task"):
        recipe(tmp_path, model={"task": SecondHalf.name})


@pytest.fixture
def rmsprop():
    OPTIMIZERS.add(RMSprop)
    yield {"type": "rmsprop", "smoothing": 0.9}
    OPTIMIZERS.remove("rmsprop")


def test_an_optimizer_trains_is_planned_and_resumes(tmp_path, rmsprop):
    training = {"optimizer": rmsprop, "learning_rate": 1e-3}
    result = start(recipe(tmp_path / "a", {"plan": "report"}, training=training))
    assert result.metrics["after"]["loss"] < result.metrics["before"]["loss"]
    measured, predicted = result.memory["measured"].phases, result.memory["predicted"].phases
    for phase in ("first_step", "steady_step"):
        assert predicted[phase] == pytest.approx(measured[phase], rel=0.02), phase
    states = load_final(tmp_path / "a")["state"]["optimizer"]["state"]
    first = next(iter(states.values()))
    count = first["square_avg"].numel()
    planned = RMSprop().state_tensors(count)
    assert set(planned) == set(first) and RMSprop().count_saved_bytes(count) == 4 * (count + 1)
    changed = recipe(tmp_path / "b", {"plan": "report"}, training=training)
    stopped = recipe(tmp_path / "b", {"plan": "report", "stop_after": 2}, training=training)
    assert_resumes(changed, stopped, tmp_path / "a")


def write_recipe(folder: Path, optimizer: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(
        "model: {name: builtin:tiny}\nmethod: {type: full}\ndata: {train: 'builtin:docstrings[train]'}\n"
        f"training: {{steps: 1, learning_rate: 1e-3, optimizer: {optimizer}}}\n"
    )
    return path


def test_an_optimizer_is_named_checked_and_documented_like_a_built_in_one(tmp_path, rmsprop):
    assert load_recipe(write_recipe(tmp_path, "rmsprop")).training.optimizer == RMSprop()
    one = load_recipe(write_recipe(tmp_path, "{type: rmsprop, smoothing: 0.5}"))
    assert one.training.optimizer == RMSprop(smoothing=0.5)
    assert Recipe.model_validate_json(one.model_dump_json()) == one
    with pytest.raises(RecipeError, match=r"training\.optimizer\.smoothing: must be"):
        load_recipe(write_recipe(tmp_path, "{type: rmsprop, smoothing: 2}"))
    with pytest.raises(RecipeError, match="did you mean 'smoothing'"):
        load_recipe(write_recipe(tmp_path, "{type: rmsprop, smothing: 0.5}"))
    described = editor_schema()["$defs"]["RMSprop"]["properties"]
    assert described["smoothing"]["description"] == "Decay of the running mean of squared gradients."
    assert described["type"]["description"] == "The optimizer: RMSprop."


def test_an_unknown_optimizer_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(RecipeError, match=r"training\.optimizer\.type: .*adamw, sgd.*'rmsprop'"):
        load_recipe(write_recipe(tmp_path, "rmsprop"))


def test_only_a_complete_optimizer_under_a_free_type_is_added():
    class Taken(RMSprop):
        type: str = "sgd"

    with pytest.raises(
        UsageError, match="int cannot be registered as an optimizer: it is not a subclass of peftlab.opt"
    ):
        OPTIMIZERS.add(int)
    with pytest.raises(UsageError, match="Taken cannot be registered as an optimizer: its type must be a literal"):
        OPTIMIZERS.add(Taken)
    OPTIMIZERS.add(SGD)
    assert list(OPTIMIZERS) == ["adamw", "sgd"]


def test_rows_in_another_order_drive_the_loop_and_resume(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "peftlab.runs.setup.build_rows", lambda bench, layout: InOrder(bench.dataset.train, bench.dataset.pad_id, 4)
    )
    result = start(recipe(tmp_path / "a"))
    assert result.progress.rows == 4 * STEPS
    assert load_final(tmp_path / "a")["state"]["rows"] == {"order": "of the file"}
    by_hand = loss_by_hand(recipe(tmp_path / "a"), [0, 1, 2, 3], 0.0)
    assert losses_of(tmp_path / "a")[0] == pytest.approx(by_hand, rel=1e-5)
    assert_resumes(recipe(tmp_path / "b"), recipe(tmp_path / "b", {"stop_after": 2}), tmp_path / "a")


def test_a_checkpoint_of_rows_in_another_order_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(StoppedError):
        patched.setattr(
            "peftlab.runs.setup.build_rows", lambda bench, layout: InOrder(bench.dataset.train, bench.dataset.pad_id, 4)
        )
        start(recipe(tmp_path / "run", {"stop_after": 2}))
    with pytest.raises(StorageError, match="written with another order of rows"):
        start(recipe(tmp_path / "run"), resume=True)


@pytest.fixture
def bits(monkeypatch):
    loss = METRICS["loss"]
    monkeypatch.setitem(
        METRICS,
        "bits",
        Metric("bits", ("loss",), False, (0.0, math.inf), loss.sums, lambda totals: loss.value(totals) / math.log(2)),
    )


def test_a_metric_is_known_to_every_task_that_gives_what_it_needs(tmp_path, bits):
    wanted = {"metrics": ["loss", "bits"]}
    causal = start(recipe(tmp_path / "causal", evaluation=wanted)).metrics["after"]
    write_model(tmp_path / "bert")
    for name, seed in (("train", 1), ("evaluation", 2)):
        write_sentences(tmp_path / f"{name}.jsonl", 16, seed)
    tags = tagging_recipe(tmp_path, METHODS["bitfit"], "tags").model_dump() | {"evaluation": wanted}
    tagged = start(Recipe.model_validate(tags)).metrics["after"]
    for metrics in (causal, tagged):
        assert metrics["bits"] == pytest.approx(metrics["loss"] / math.log(2))
    assert RunDirectory.open(tmp_path / "tags").read_result().metrics["after"] == tagged


def test_a_metric_is_refused_for_a_task_that_does_not_give_what_it_needs(tmp_path, monkeypatch):
    accuracy = METRICS["accuracy"]
    monkeypatch.setitem(METRICS, "hits", Metric("hits", ("classes",), True, (0.0, 1.0), accuracy.sums, accuracy.value))
    path = write_recipe(tmp_path, "sgd")
    with pytest.raises(RecipeError, match="hits: only for task sequence-classification, not causal-lm"):
        load_recipe(path, ["evaluation.metrics=[hits]", "data.evaluation=0.5"])
