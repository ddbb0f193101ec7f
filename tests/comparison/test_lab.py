"""The lab around its runs: what is run, what is found again, which rate is taken. Runs are made up, but one pair."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from peftlab.cli.render_comparison import render_comparison
from peftlab.comparison.folder import read_comparison
from peftlab.comparison.lab import TUNING_SEED, compare
from peftlab.comparison.rows import read_table
from peftlab.comparison.variants import Settings
from peftlab.errors import StorageError, UsageError
from peftlab.recipe.comparison import list_variants
from peftlab.recipe.dump import dump_recipe
from peftlab.recipe.load import load_recipe
from peftlab.recipe.schema import Recipe
from peftlab.reports import RunResult
from peftlab.runs.digests import write_digests
from peftlab.runs.directory import RunDirectory
from peftlab.runs.jobs import Ending
from tests.runs.recipes import shallow_recipe, shallow_sections, short_recipe

RATES = (1e-3, 1e-2, 1e-1)


class Machine:
    """Stands in for the processes: writes what a run would, with a loss that depends on rate and seed alone."""

    def __init__(self, best: float = 1e-2):
        self.best, self.done, self.stop_after, self.failing, self.status = best, [], None, set(), "failed"

    def run(self, jobs, at_once, time_limit, warm=False):
        for job in jobs:
            if self.stop_after is not None and len(self.done) >= self.stop_after:
                raise KeyboardInterrupt
            recipe = load_recipe(job.recipe, job.overrides)
            self.done.append((recipe.method.type, recipe.training.learning_rate, recipe.run.seed))
            failed = self.done[-1] in self.failing
            directory = RunDirectory.claim(job.folder)
            directory.write_result(self.result(recipe, job.name, failed))
            if not failed:
                directory.weights.mkdir(exist_ok=True)
                (directory.weights / "adapter.safetensors").write_bytes(b"trained")
            yield Ending(job, self.status if failed else "finished", "no device" if failed else None, 1.0)

    def result(self, recipe: Recipe, name: str, failed: bool) -> RunResult:
        distance = abs(recipe.training.learning_rate / self.best - 1)
        losses = {"after": {"loss": 2 + distance}, "test_after": {"loss": 3 + distance + recipe.run.seed / 10}}
        return RunResult(
            status=self.status if failed else "finished", name=name, recipe=recipe.model_dump(mode="json"),
            environment={}, metrics={} if failed else losses, error="no device" if failed else None,
        )  # fmt: skip


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    monkeypatch.setattr("peftlab.comparison.jobs.run_locally", machine.run)
    return machine


@pytest.fixture
def variants(tmp_path):
    files = []
    for method in ("lora", "bitfit"):
        files.append(tmp_path / f"{method}.yaml")
        files[-1].write_text(dump_recipe(short_recipe(method, tmp_path / "unused")))
    return list_variants(files, [])


def run(variants, folder: Path, **settings):
    return compare(variants, Settings(**({"rates": RATES} | settings)), folder, name="c")


def damage_weights(run: Path) -> None:
    (run / "weights" / "adapter.safetensors").write_bytes(b"")


def lose_weights(run: Path) -> None:
    shutil.rmtree(run / "weights")


def change_weights(run: Path) -> None:
    write_digests(run, 6)
    (run / "weights" / "adapter.safetensors").write_bytes(b"traineD")


def damage_record(run: Path) -> None:
    (run / "result.json").write_text("null")


@pytest.mark.parametrize("damage", [damage_weights, lose_weights, change_weights, damage_record])
def test_a_finished_run_that_was_damaged_is_made_again(machine, variants, tmp_path, damage):
    run(variants, tmp_path / "out")
    whole = (tmp_path / "out" / "comparison.json").read_text()
    done, folder = list(machine.done), sorted((tmp_path / "out" / "runs").iterdir())[0]
    damage(folder)
    run(variants, tmp_path / "out")
    assert len(machine.done) == len(done) + 1
    assert (tmp_path / "out" / "comparison.json").read_text() == whole


def test_a_summary_that_cannot_be_written_is_named(machine, variants, tmp_path, monkeypatch):
    def refuse(path, content):
        if path.name == "comparison.json":
            raise OSError(27, "File too large", str(path))

    monkeypatch.setattr("peftlab.comparison.lab.write_atomically", refuse)
    told = f"{tmp_path / 'out' / 'comparison.json'}: File too large; free some space; the same command continues"
    with pytest.raises(StorageError, match=re.escape(told)):
        run(variants, tmp_path / "out")


def test_learning_rates_are_tried_with_a_seed_of_their_own_that_is_not_reported(machine, variants, tmp_path):
    report = run(variants, tmp_path / "out")
    tried = [(method, rate, TUNING_SEED) for method in ("lora", "bitfit") for rate in RATES]
    assert machine.done == [*tried, *((method, 1e-2, seed) for seed in range(3) for method in ("lora", "bitfit"))]
    lora = report.variants[0]
    assert lora.learning_rate == 1e-2
    assert [trial.validation for trial in lora.sweep] == pytest.approx([2.9, 2.0, 11.0])
    assert [trial.test for trial in lora.trials] == pytest.approx([3.0, 3.1, 3.2])
    assert report.notes == [] and read_comparison(tmp_path / "out") == report


def test_rows_that_choose_are_not_those_that_report(machine, variants, tmp_path):
    run(variants, tmp_path / "out")
    for path in (tmp_path / "out" / "runs").iterdir():
        recipe = RunDirectory.open(path).read_result().recipe
        data, tries = recipe["data"], recipe["run"]["seed"] == TUNING_SEED
        assert (data["test"], data["test_rows"]) == ((None, None) if tries else ("builtin:docstrings[test]", 16))
        assert data["evaluation"] == 0.1
        assert data["seed"] == 0


def test_a_try_of_before_that_measured_the_test_rows_too_is_not_repeated(machine, variants, tmp_path, monkeypatch):
    with monkeypatch.context() as former:
        former.setattr("peftlab.comparison.learning_rates.spare_trial", lambda recipe: [])
        run(variants, tmp_path / "out")
    machine.done = []
    run(variants, tmp_path / "out")
    assert machine.done == []


def test_what_a_result_costs_in_use_is_measured_once_a_variant(machine, variants, tmp_path):
    report = run(variants, tmp_path / "out")
    runs = {path.name: RunDirectory.open(path).read_result().recipe for path in (tmp_path / "out" / "runs").iterdir()}
    measured = {name for name, recipe in runs.items() if recipe["evaluation"]["latency"]}
    assert measured == {variant.trials[-1].run for variant in report.variants}


def test_a_best_learning_rate_at_the_edge_is_reported(machine, variants, tmp_path):
    def shown(folder):
        run(variants, folder)
        return "\n".join(map(str, render_comparison(read_table(folder)).renderables))

    assert "a better learning rate may be beyond" not in shown(tmp_path / "inside")
    machine.best = 1e-1
    assert "a better learning rate may be beyond those tried, for: lora, bitfit" in shown(tmp_path / "edge")


@pytest.mark.parametrize(
    ("best", "tried", "chosen"),
    [
        (5e-3, (1.5e-3, 5e-3, 0.015), 5e-3),
        (0.045, (1.5e-3, 5e-3, 0.015, 0.045, 0.135), 0.045),
        (9.0, (1.5e-3, 5e-3, 0.015, 0.045, 0.135), 0.135),
        (4.5e-4, (1.35e-4, 4.5e-4, 1.5e-3, 5e-3, 0.015), 4.5e-4),
    ],
)
def test_a_best_rate_that_is_the_last_is_followed_by_those_beyond(machine, variants, tmp_path, best, tried, chosen):
    machine.best = best
    (variant,) = run(variants[:1], tmp_path / "out", rates=None, seeds=(0, 1)).variants
    assert variant.learning_rate == pytest.approx(chosen) and variant.at_edge == (chosen == 0.135)
    assert [trial.learning_rate for trial in variant.sweep] == pytest.approx(tried)
    assert machine.done[-1] == ("lora", pytest.approx(chosen), 1)


def test_rates_that_were_named_are_all_there_are(machine, variants, tmp_path):
    machine.best = 9.0
    run(variants[:1], tmp_path / "out", seeds=(0,))
    assert sorted(rate for _, rate, seed in machine.done if seed) == list(RATES) and len(machine.done) == 4


def test_variants_that_diverge_at_every_rate_try_lower_ones_and_others_do_not(machine, variants, tmp_path):
    machine.failing = {("lora", rate, TUNING_SEED) for rate in (1.5e-3, 5e-3, 0.015)}
    run(variants[:1], tmp_path / "failed", rates=None, seeds=(0,))
    assert len(machine.done) == 4
    machine.status = "diverged"
    report = run(variants[:1], tmp_path / "diverged", rates=None, seeds=(0,))
    assert report.variants[0].learning_rate == pytest.approx(4.5e-4)


@pytest.mark.parametrize("stop_after", [0, 1, 5, 7, 9])
def test_a_killed_comparison_resumes_and_repeats_no_finished_run(machine, variants, tmp_path, stop_after):
    straight = run(variants, tmp_path / "straight")
    total, machine.done = len(machine.done), []
    machine.stop_after = stop_after
    with pytest.raises(KeyboardInterrupt):
        run(variants, tmp_path / "out")
    machine.stop_after = None
    assert run(variants, tmp_path / "out") == straight
    assert len(machine.done) == len(set(machine.done)) == total


def test_a_failed_run_is_a_trial_that_says_so_and_is_tried_again(machine, variants, tmp_path):
    machine.failing = {("lora", 1e-2, 1)}
    trial = run(variants, tmp_path / "out").variants[0].trials[1]
    assert (trial.status, trial.error, trial.test) == ("failed", "no device", None)
    machine.failing, machine.done = set(), []
    assert run(variants, tmp_path / "out").variants[0].trials[1].status == "finished"
    assert machine.done == [("lora", 1e-2, 1)]


def test_another_recipe_or_other_data_is_another_run(machine, variants, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n' * 20)
    own = [variant.with_overrides([f"data.train={data}", "data.train_rows=4"]) for variant in variants]
    run(own, tmp_path / "out", rates=(1e-2,), seeds=(0,))
    machine.done = []
    run([one.with_overrides(["training.steps=7"]) for one in own], tmp_path / "out", rates=(1e-2,), seeds=(0,))
    assert len(machine.done) == 2
    run(own, tmp_path / "out", rates=(1e-2,), seeds=(0,))
    assert len(machine.done) == 2
    from peftlab.comparison.identity import hash_file

    hash_file.cache_clear()
    data.write_text('{"prompt": "a", "completion": "c"}\n' * 20)
    run(own, tmp_path / "out", rates=(1e-2,), seeds=(0,))
    assert len(machine.done) == 4


def test_budgets_are_solved_once_and_equal_recipes_run_once(machine, variants, tmp_path):
    budgets = ("trainable=1%", "trainable=2%")
    report = run(variants, tmp_path / "out", budgets=budgets, rates=(1e-2,), seeds=(0,))
    assert [(v.name.rpartition("-")[2], v.budget) for v in report.variants] == [
        ("lora", "trainable=1%"), ("bitfit", "trainable=1%"), ("lora", "trainable=2%"), ("bitfit", "trainable=2%"),
    ]  # fmt: skip
    small, fixed, large, same = report.variants
    assert large.solution.solved["method.rank"] > small.solution.solved["method.rank"]
    assert fixed.trials[0].run == same.trials[0].run, "BitFit has one size, and so one run"
    assert len(machine.done) == 3
    assert any("bitfit trainable=2%" in note for note in report.notes), "a budget that is not met is told"


def test_a_budget_of_operations_is_solved_again_when_the_rows_of_its_file_change(machine, variants, tmp_path):
    from peftlab.comparison.identity import hash_file

    data = tmp_path / "rows.jsonl"
    steps = []
    for words in (5, 50):
        line = json.dumps({"prompt": "a", "completion": "word " * words})
        data.write_text(f"{line}\n" * 20, encoding="utf-8")
        hash_file.cache_clear()
        own = [one.with_overrides([f"data.train={data}", "data.train_rows=null"]) for one in variants[:1]]
        (one,) = run(own, tmp_path / "out", budgets=("operations=1T",), rates=(1e-2,), seeds=(0,)).variants
        steps.append(one.solution.solved["training.steps"])
    assert steps[0] > 4 * steps[1], "ten times the words are fewer steps"


def test_a_comparison_of_other_variants_is_not_replaced_and_one_that_grows_continues(machine, variants, tmp_path):
    run(variants[:1], tmp_path / "out")
    whole, done = (tmp_path / "out" / "comparison.json").read_bytes(), len(machine.done)
    with pytest.raises(StorageError, match="is the comparison of .*lora; name another --output, or replace it with"):
        run(variants[1:], tmp_path / "out")
    assert (tmp_path / "out" / "comparison.json").read_bytes() == whole and len(machine.done) == done
    run(variants, tmp_path / "out")
    assert {method for method, *_ in machine.done[done:]} == {"bitfit"}
    compare(variants[1:], Settings(rates=RATES), tmp_path / "out", name="c")
    (tmp_path / "out" / "comparison.json").write_text("damaged")
    run(variants, tmp_path / "out")


def test_nothing_of_anybody_else_is_touched(variants, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(StorageError, match="contains files that are not a comparison"):
        run(variants, other)
    a_run = RunDirectory.claim(tmp_path / "run")
    a_run.write_result(RunResult(status="finished", name="x", recipe={}, environment={}))
    with pytest.raises(StorageError, match="is the folder of a run"):
        run(variants, tmp_path / "run")


def test_what_cannot_be_compared_is_one_line(variants, tmp_path):
    classifier = tmp_path / "topics.yaml"
    classifier.write_text(Path("recipes/minilm/lora.yaml").read_text())
    with pytest.raises(UsageError, match="recipes of different tasks"):
        run([*variants, *list_variants([classifier], [])], tmp_path / "out")
    with pytest.raises(UsageError, match="unknown metric 'acuracy'; did you mean 'accuracy'"):
        run(variants, tmp_path / "out", metric="acuracy")
    blind = [one.with_overrides(["data.evaluation=null", "data.evaluation_rows=null"]) for one in variants]
    with pytest.raises(UsageError, match="needs evaluation rows in every recipe"):
        run(blind, tmp_path / "out")
    mixed = [variants[0].with_overrides(["data.test=4"]), *variants[1:]]
    with pytest.raises(UsageError, match="^data.test: .* has no test rows, and other recipes have some"):
        run(mixed, tmp_path / "out", rates=None, rate_factors=(1.0,))


def test_real_runs_lie_in_the_folder_with_what_they_printed(tmp_path):
    good = shallow_sections("bitfit", tmp_path / "unused", steps=2)
    good["run"]["plan"] = "report"
    good["data"] |= {"test": 4, "general": "builtin:prose[test[:2]]"}
    files = [tmp_path / "good.yaml", tmp_path / "bad.yaml"]
    files[0].write_text(dump_recipe(Recipe.model_validate(good)))
    bad = shallow_recipe("full", tmp_path / "unused", learning_rate=1e30, schedule="constant")
    files[1].write_text(dump_recipe(bad.model_copy(update={"data": bad.data.model_copy(update={"test": 4})})))
    folder = tmp_path / "out"
    settings = Settings(rates=None, rate_factors=(1.0,), seeds=(0,), jobs=2)
    report = compare(list_variants(files, []), settings, folder, name="real")
    finished, diverged = (variant.trials[0] for variant in report.variants)
    assert (finished.status, diverged.status) == ("finished", "diverged") and "step 2: the" in diverged.error
    assert "not finite" in (folder / "logs" / f"{diverged.run}.txt").read_text()
    assert (folder / "memory.png").read_bytes().startswith(b"\x89PNG")
    result = RunDirectory.open(folder / "runs" / finished.run).read_result()
    assert finished.test == result.metrics["test_after"]["loss"]
    assert set(result.memory) == {"predicted", "measured", "process"}
    scores = json.loads((folder / "runs" / finished.run / "scores.json").read_text())
    assert {key: len(value["loss"]) for key, value in scores.items()} == {
        "before": 16, "test_before": 4, "general_before": 8, "after": 16, "test_after": 4, "general_after": 8,
    }  # fmt: skip
