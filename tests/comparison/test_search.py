"""Searches: what is tried, what is stopped, what is chosen and what it cost. Runs are made up."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch

from peftlab.cli.compare import make_search
from peftlab.cli.render_comparison import render_comparison
from peftlab.comparison.beginning import MEANS, Beginning, Tried
from peftlab.comparison.lab import TUNING_SEED, compare
from peftlab.comparison.points import Point
from peftlab.comparison.report.write import write_report
from peftlab.comparison.rows import read_table
from peftlab.comparison.variants import Settings
from peftlab.errors import MissingRequirementError, StorageError, UsageError
from peftlab.optimization.schedule import build_schedule
from peftlab.recipe.comparison import list_variants
from peftlab.recipe.dump import dump_recipe
from peftlab.recipe.load import load_recipe
from peftlab.recipe.schema import Recipe
from peftlab.recipe.space import Range, Search
from peftlab.reports import STOPPED, RunResult
from peftlab.runs.directory import RunDirectory
from peftlab.runs.jobs import Ending
from tests.runs.recipes import short_recipe

STEPS = 12
SPACE = {
    "training.learning_rate": Range(low=0.1, high=10, log=True, relative=True),
    "training.schedule": ("linear", "cosine"),
}


class Machine:
    """Stands in for the processes: a run writes its evaluations one after another, as far as it is let."""

    def __init__(self):
        self.started, self.done, self.stop_after, self.optimum, self.cosine = [], [], None, 2e-3, 0.0

    def loss(self, recipe: Recipe, step: int) -> float:
        distance = self.loss_of(recipe.training.learning_rate) + 0.1 * (recipe.training.schedule == "linear")
        distance += self.cosine * (recipe.training.schedule == "cosine")
        return 2 + distance + 1.5 * (1 - step / STEPS)

    def loss_of(self, learning_rate: float) -> float:
        return abs(learning_rate / self.optimum - 1)

    def start(self, job, warm):
        if self.stop_after is not None and len(self.started) >= self.stop_after:
            raise KeyboardInterrupt
        recipe = load_recipe(job.recipe, job.overrides)
        self.started.append((recipe.method.type, recipe.training.learning_rate, recipe.training.schedule))
        return Process(self, job, recipe)

    def run(self, jobs, at_once, time_limit, warm=False):
        for job in jobs:
            process = Process(self, job, load_recipe(job.recipe, job.overrides))
            self.done.append((process.recipe.training.learning_rate, process.recipe.run.seed))
            process.every = None
            yield process.ending()


class Process:
    def __init__(self, machine: Machine, job, recipe: Recipe):
        self.machine, self.job, self.recipe, self.step, self.started = machine, job, recipe, 0, 0.0
        self.every, self.ended = recipe.evaluation.every, False
        self.directory = RunDirectory.claim(job.folder)
        self.write("running")
        self.log = job.folder / "metrics.jsonl"
        self.log.write_text("")

    def write(self, status: str) -> None:
        metrics = {}
        if status == "finished":
            loss = self.machine.loss(self.recipe, STEPS)
            metrics = {"after": {"loss": loss}, "test_after": {"loss": loss + self.recipe.run.seed / 10}}
            self.directory.weights.mkdir(exist_ok=True)
            (self.directory.weights / "adapter.safetensors").write_bytes(b"trained")
        self.directory.write_result(RunResult(
            status=status, name=self.job.name, recipe=self.recipe.model_dump(mode="json"), environment={},
            metrics=metrics, seconds={"training": 2.0 * self.step, "processor": float(self.step)},
        ))  # fmt: skip

    def ending(self) -> Ending | None:
        """One evaluation more each time it is asked, until the last step."""
        if not self.ended and self.every and self.step + self.every < STEPS:
            self.step += self.every
            with self.log.open("a") as file:
                line = {"event": "evaluation", "step": self.step, "loss": self.machine.loss(self.recipe, self.step)}
                file.write(json.dumps(line) + "\n")
            return None
        if not self.ended:
            self.step = STEPS
            self.write("finished")
        status = "interrupted" if self.ended else "finished"
        return Ending(self.job, status, None, 1.0)

    def end(self) -> None:
        self.ended = True
        self.write("interrupted")


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    monkeypatch.setattr("peftlab.comparison.jobs.run_locally", machine.run)
    monkeypatch.setattr("peftlab.comparison.search_pool.start", machine.start)
    monkeypatch.setattr("peftlab.comparison.search_pool.end_all", lambda running, *_: [one.end() for one in running])
    monkeypatch.setattr("peftlab.comparison.search_pool.POLL_SECONDS", 0)
    return machine


@pytest.fixture
def variants(tmp_path):
    files = []
    for method in ("lora", "bitfit"):
        files.append(tmp_path / f"{method}.yaml")
        recipe = short_recipe(method, tmp_path / "unused", steps=STEPS, learning_rate=1e-3, batch_size=16)
        files[-1].write_text(dump_recipe(recipe))
    return list_variants(files, [])


def run(variants, folder: Path, search: Search | None = None, **settings):
    search = search or Search(space=SPACE, trials=9)
    return compare(variants, Settings(search=search, seeds=(0, 1), **settings), folder, name="c")


def test_a_search_tries_the_recipes_own_settings_first_and_chooses_the_best_that_finished(machine, variants, tmp_path):
    report = run(variants, tmp_path / "out")
    for variant in report.variants:
        assert [trial.seed for trial in variant.sweep] == [TUNING_SEED] * 9
        assert variant.sweep[0].settings == {"training.learning_rate": 1e-3, "training.schedule": "linear"}
        finished = {trial.validation: trial.settings for trial in variant.sweep if trial.status == "finished"}
        assert variant.settings == finished[min(finished)] and variant.search.best == min(finished)
        assert variant.search.own == variant.sweep[0].validation == pytest.approx(2 + 0.5 + 0.1)
        assert variant.search.best < variant.search.own
        assert variant.learning_rate == variant.settings["training.learning_rate"]
        assert all(1e-4 <= trial.learning_rate <= 1e-2 for trial in variant.sweep)
    chosen = [variant.learning_rate for variant in report.variants]
    assert machine.done == [(rate, seed) for seed in (0, 1) for rate in chosen]


@pytest.mark.parametrize(
    ("optimum", "first", "between"),
    [
        # Losses of .667, 0 and 2 at equal distances of log 3: least a quarter of one below 3e-3.
        (3e-3, [1e-3, 3e-3, 9e-3], [2.28e-3]),
        (1e-3, [1e-3, 3e-3, 3e-4], [7.24e-4]),  # .7, 0 and 2: the parabola's least is .32 below 1e-3 (as a logarithm)
        (1e-4, [1e-3, 3e-3, 3e-4, 1e-4], []),  # 9e-5 is outside the space, whose end is tried
        (9e-3, [1e-3, 3e-3, 9e-3], []),  # 2.7e-2 is outside too, and the end too near to try
    ],
)
def test_a_search_begins_with_learning_rates_beyond_the_best_until_it_has_neighbours_then_lists_then_between(
    machine, variants, tmp_path, optimum, first, between
):
    machine.optimum = optimum
    (variant,) = run(variants[:1], tmp_path / "out", Search(space=SPACE, trials=9)).variants
    alone = variant.sweep[: len(first)]
    assert [trial.learning_rate for trial in alone] == first
    assert {trial.settings["training.schedule"] for trial in alone} == {"linear"}
    values = {trial.learning_rate: machine.loss_of(trial.learning_rate) for trial in alone}
    best, following = min(values, key=values.get), variant.sweep[len(first)].settings
    assert following == {"training.learning_rate": best, "training.schedule": "cosine"}
    assert {trial.status for trial in variant.sweep[: len(first) + 1]} == {"finished"}
    machine.cosine = 1.0  # now the list's other value is worse, and the best has neighbours
    (variant,) = run(variants[:1], tmp_path / "other", Search(space=SPACE, trials=9)).variants
    assert [trial.learning_rate for trial in variant.sweep[len(first) + 1 :]][: len(between)] == between


@pytest.mark.parametrize(("schedule", "learning_rate"), [("constant", 1.5e-3), ("cosine", 3e-3)])
def test_another_schedule_is_tried_with_the_same_mean_learning_rate(
    machine, variants, tmp_path, schedule, learning_rate
):
    machine.optimum = 3e-3
    space = SPACE | {"training.schedule": ("linear", schedule)}
    (variant,) = run(variants[:1], tmp_path / "out", Search(space=space, trials=4)).variants
    settings = {"training.learning_rate": learning_rate, "training.schedule": schedule}
    assert variant.sweep[3].settings == settings


@pytest.mark.parametrize("schedule", MEANS)
def test_the_mean_of_a_schedule_is_its_own(schedule):
    training = short_recipe("lora", Path("unused"), steps=1000, schedule=schedule, warmup=0).training
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    following = build_schedule(optimizer, training, 1000)
    rates = []
    for _ in range(1000):
        rates.append(following.get_last_lr()[0])
        optimizer.step()
        following.step()
    assert fmean(rates) == pytest.approx(MEANS[schedule], abs=1e-3)


def test_where_no_learning_rate_learns_a_lower_one_is_tried(machine, variants):
    space = {"training.learning_rate": Range(low=1e-6, high=1, log=True)}
    beginning, tried = Beginning(Point.of({"training.learning_rate": 1e-3}), space), []
    for expected in (1e-3, 3e-4, 9e-5):
        point = beginning.next(tried, Point.at_learning_rate(1e-3))
        assert point == Point.at_learning_rate(expected)
        tried.append(Tried(point))


def test_the_rule_of_a_method_is_tried_after_the_recipes_own_learning_rate(machine, variants, tmp_path):
    (variant,) = run(
        [replace(variants[0], suggested_learning_rate=8e-3)], tmp_path / "out", Search(space=SPACE, trials=3)
    ).variants
    assert [trial.learning_rate for trial in variant.sweep] == [1e-3, 8e-3, 3e-4]


def test_learning_rates_outside_the_space_are_left_out_and_own_settings_outside_it_draw_all(
    machine, variants, tmp_path
):
    space = SPACE | {"training.learning_rate": Range(low=0.5, high=20, log=True, relative=True)}
    machine.optimum = 1e-3
    (variant,) = run(variants[:1], tmp_path / "out", Search(space=space, trials=4)).variants
    # Below the recipe's own is the end of the space; then comes the other schedule.
    assert [trial.learning_rate for trial in variant.sweep] == [1e-3, 3e-3, 5e-4, 1e-3]
    space |= {"training.schedule": ("cosine", "constant")}
    (variant,) = run(variants[:1], tmp_path / "drawn", Search(space=space, trials=4)).variants
    assert not {trial.learning_rate for trial in variant.sweep} & {1e-3, 3e-3, 3e-4}


def test_a_trial_is_stopped_exactly_where_it_is_not_in_the_better_half_so_far(machine, variants, tmp_path):
    (variant,) = run(variants[:1], tmp_path / "out", Search(space=SPACE, trials=15)).variants
    seen: dict[int, list[float]] = {4: [], 8: []}
    # Learning rates and the list's other value come first, and run to their end: 1e-3 and 3e-3 are equal.
    first = [1e-3, 3e-3, 3e-4, 1e-3]
    assert [trial.learning_rate for trial in variant.sweep[: len(first)]] == first
    for number, trial in enumerate(variant.sweep):
        recipe = variants[0].with_overrides([f"{key}={json.dumps(v)}" for key, v in trial.settings.items()]).recipe
        reached = "finished"
        for step, values in seen.items():
            values.append(machine.loss(recipe, step))
            if values[-1] > sorted(values)[max(1, len(values) // 2) - 1] and number >= len(first):
                reached = STOPPED
                break
        assert trial.status == reached, trial
    assert variant.search.stopped > 1 < variant.search.finished
    steps = [RunDirectory.open(tmp_path / "out" / "runs" / t.run).read_result().seconds for t in variant.sweep]
    assert {4, STEPS} <= {one["processor"] for one in steps} <= {4, 8, STEPS}
    once = {trial.run: cost["processor"] for trial, cost in zip(variant.sweep, steps, strict=True)}
    assert variant.search.processor_seconds == sum(once.values())


def test_batches_of_other_sizes_are_compared_after_the_same_share_of_the_rows(machine, variants, tmp_path):
    variant = variants[0].with_overrides(["training.steps=null", "training.epochs=1", "data.train_rows=96"])
    space = {"training.batch_size": (16, 8, 4)}
    (searched,) = run([variant], tmp_path / "out", Search(space=space, trials=6)).variants
    read = [RunDirectory.open(tmp_path / "out" / "runs" / trial.run).read_result().recipe for trial in searched.sweep]
    every = {recipe["training"]["batch_size"]: recipe["evaluation"]["every"] for recipe in read}
    assert every == {16: 2, 8: 4, 4: 8} and searched.search.stopping == "asha"
    unknown = variant.with_overrides(["data.train_rows=null", "evaluation.every=2"])
    (searched,) = run([unknown], tmp_path / "unknown", Search(space=space, trials=2)).variants
    assert searched.search.stopping == "none" and any("data.train_rows" in note for note in searched.search.notes)


def test_what_a_trial_does_not_need_is_not_measured_and_the_test_rows_stay_unseen(machine, variants, tmp_path):
    report = run(variants[:1], tmp_path / "out")
    for trial in report.variants[0].sweep:
        recipe = RunDirectory.open(tmp_path / "out" / "runs" / trial.run).read_result().recipe
        assert recipe["data"]["test"] is None and recipe["data"]["evaluation"] == 0.1 and trial.test is None
    for trial in report.variants[0].trials:
        recipe = RunDirectory.open(tmp_path / "out" / "runs" / trial.run).read_result().recipe
        assert recipe["data"]["test"] == "builtin:docstrings[test]" and recipe["evaluation"]["every"] is None


def test_rows_held_out_of_the_training_rows_stay_held_out_in_trials(machine, variants, tmp_path):
    own = [variants[0].with_overrides(["data.evaluation=8", "data.evaluation_rows=null"])]
    (variant,) = run(own, tmp_path / "out", Search(space=SPACE, trials=1)).variants
    recipe = RunDirectory.open(tmp_path / "out" / "runs" / variant.sweep[0].run).read_result().recipe
    assert recipe["data"]["test"] == 8


@pytest.mark.parametrize("stop_after", [1, 5])
def test_a_search_that_is_killed_and_resumed_tries_and_chooses_the_same(machine, variants, tmp_path, stop_after):
    search = Search(space=SPACE, trials=4)
    straight = run(variants, tmp_path / "straight", search)
    tried, machine.started = list(machine.started), []
    machine.stop_after = stop_after
    with pytest.raises(KeyboardInterrupt):
        run(variants, tmp_path / "out", search)
    assert machine.started == tried[:stop_after]
    machine.stop_after = None
    assert run(variants, tmp_path / "out", search) == straight
    assert machine.started == tried


def test_more_trials_continue_a_search_and_another_space_is_another_one(machine, variants, tmp_path):
    few = run(variants[:1], tmp_path / "out", Search(space=SPACE, trials=4))
    more = run(variants[:1], tmp_path / "out", Search(space=SPACE, trials=7))
    assert more.variants[0].sweep[:4] == few.variants[0].sweep and len(machine.started) == 7
    other = run(variants[:1], tmp_path / "out", Search(space={"training.warmup": Range(low=0.0, high=0.5)}, trials=2))
    assert [set(trial.settings) for trial in other.variants[0].sweep] == [{"training.warmup"}] * 2


def test_every_variant_has_the_same_caps_and_the_first_that_is_reached_ends_its_search(machine, variants, tmp_path):
    search = Search(space=SPACE, trials=50, processor_seconds=40, seconds=10_000)
    for variant in run(variants, tmp_path / "out", search).variants:
        found = variant.search
        assert (found.ended_by, found.caps["processor_seconds"]) == ("processor_seconds", 40)
        assert 40 <= found.processor_seconds < 40 + STEPS and found.seconds == 2 * found.processor_seconds
    assert run(variants[:1], tmp_path / "out", Search(space=SPACE, trials=2)).variants[0].search.ended_by == "trials"


def test_nothing_is_stopped_without_a_rule(machine, variants, tmp_path):
    (variant,) = run(variants[:1], tmp_path / "out", Search(space=SPACE, trials=6, stopping="none")).variants
    assert [trial.status for trial in variant.sweep] == ["finished"] * 6


def test_a_best_value_at_the_end_of_its_range_and_a_space_without_the_own_values_are_noted(machine, variants, tmp_path):
    space = {"training.learning_rate": Range(low=1e-4, high=9e-4, log=True)}
    (variant,) = run(variants[:1], tmp_path / "out", Search(space=space, trials=12, stopping="none")).variants
    assert variant.search.notes == [
        "the recipe's own settings are outside the space and were not tried",
        "the best training.learning_rate is at an end of its range: a better one may be beyond it",
    ]


def test_the_page_and_the_terminal_say_what_was_searched_and_what_it_cost(machine, variants, tmp_path):
    report = run(variants, tmp_path / "out")
    page = write_report(tmp_path / "out").page.read_text()
    shown = "\n".join(map(str, render_comparison(read_table(tmp_path / "out")).renderables))
    for variant in report.variants:
        found = variant.search
        cost = f"{found.processor_seconds:.0f} processor seconds; best loss on the evaluation rows {found.best:.4f}"
        assert f"9 trials ({found.finished} finished, {found.stopped} stopped early), {cost}" in shown
        assert f"<td>{found.stopped}</td>" in page and f"<td>{found.best:.4f}</td>" in page
    assert "What was searched" in page and "training.schedule: linear, cosine" not in page
    assert "training.schedule: &#39;linear&#39;, &#39;cosine&#39;" in page and "Runs that did not finish" not in page


def test_a_damaged_search_is_named_with_its_remedy(machine, variants, tmp_path):
    run(variants[:1], tmp_path / "out")
    (tmp_path / "out" / "search.db").write_bytes(b"not a database" * 100)
    with pytest.raises(StorageError, match=r"search\.db: cannot be read: .*; remove it to search again"):
        run(variants[:1], tmp_path / "out")


def test_a_search_that_cannot_be_made_is_one_line(machine, variants, tmp_path, monkeypatch):
    told = "training.batch_size: cannot be searched under the budget trainable=1%, whose cost it may change"
    space = {"training.batch_size": (4, 8)}
    with pytest.raises(UsageError, match=re.escape(told)):
        run(variants[:1], tmp_path / "budget", Search(space=space), budgets=("trainable=1%",))
    with pytest.raises(UsageError, match="leave out --cluster"):
        run(variants, tmp_path / "cluster", cluster="local")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingRequirementError, match=re.escape("pip install 'peftlab[search]'")):
        run(variants, tmp_path / "missing")


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("training.warmpu=0.0..0.3", "unknown key; did you mean 'warmup'?"),
        ("training.warmup=0.3..0.1", "the range 0.3..0.1 is empty: low must be less than high"),
        ("training.weight_decay=0..1:log", "has no logarithm: low must be greater than 0"),
        ("training.schedule=linear,cosin", "did you mean 'cosine'?"),
        ("training.schedule=linear", "needs at least two values to choose from"),
        ("run.seed=1..9", "must be the same in all trials"),
        ("data.test_rows=1..9", "must be the same in all trials"),
        ("method.rank=2..8", "only of lora, qlora (variant "),
        ("training.warmup=x1..x2", "the recipe's own value is 0.0, which has no multiples"),
        ("training.warmup", "write KEY=1e-4..1e-2:log"),
        ("training.warmup=x0.1..2", "both ends are multiples (x) or neither is"),
        ("training.warmup=a..b", "both ends must be numbers"),
    ],
)
def test_a_key_that_cannot_be_searched_is_one_line(variants, key, told):
    with pytest.raises(UsageError, match=re.escape(told)) as raised:
        make_search(None, [key], {}, variants)
    assert "\n" not in str(raised.value) and str(raised.value).startswith("--search")


def test_caps_without_a_search_and_wrong_caps_are_one_line(variants):
    with pytest.raises(UsageError, match="need a --search"):
        make_search(None, [], {"trials": 3}, variants)
    with pytest.raises(UsageError, match="--stopping: input should be 'asha', 'hyperband' or 'none', got 'median'"):
        make_search(None, ["training.warmup=0.0..0.3"], {"stopping": "median"}, variants)
    with pytest.raises(UsageError, match=r"^--search-processor-seconds: input should be greater than 0, got 0.0$"):
        make_search(None, ["training.warmup=0.0..0.3"], {"processor_seconds": 0.0}, variants)


@pytest.mark.slow
@pytest.mark.parametrize("stopping", ["asha", "hyperband"])
def test_real_runs_are_stopped_and_the_search_killed_and_resumed_is_the_same(tmp_path, monkeypatch, stopping):
    file = tmp_path / "lora.yaml"
    file.write_text(dump_recipe(short_recipe("lora", tmp_path / "unused", steps=18)))
    search = Search(space=SPACE, trials=9, stopping=stopping)
    variants = list_variants([file], [])
    straight = run(variants, tmp_path / "straight", search)
    from peftlab.comparison import search_pool as room

    begun: list[str] = []

    def start(job, warm, start=room.start):
        begun.append(job.name)
        if len(begun) == 6:
            raise KeyboardInterrupt
        return start(job, warm)

    monkeypatch.setattr(room, "start", start)
    with pytest.raises(KeyboardInterrupt):
        run(variants, tmp_path / "out", search)
    resumed = run(variants, tmp_path / "out", search)
    assert straight.variants[0].search.stopped > 0
    costs = {"seconds": 0.0, "processor_seconds": 0.0}
    for report in (straight, resumed):
        report.variants[0].search = report.variants[0].search.model_copy(update=costs)
    assert resumed == straight
