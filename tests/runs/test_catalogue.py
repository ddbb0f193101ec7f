"""Runs below a folder: listed by their records, selected, tagged, compared, and cleaned without losing work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from peftlab.cli.app import run
from peftlab.cli.runs import describe_value
from peftlab.errors import StorageError, UsageError
from peftlab.recipe.schema import Recipe
from peftlab.runs import catalogue
from peftlab.runs.directory import FORMER, RunDirectory
from peftlab.runs.display import NoDisplay
from peftlab.runs.reproduction import describe_run, different_environment, reproduce
from peftlab.runs.run import train
from tests.runs.recipes import shallow_sections


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a finished run, `group/lora`."""
    root = tmp_path_factory.mktemp("made")
    sections = shallow_sections("lora", root / "group" / "lora", steps=2, batch_size=2)
    sections["data"] |= {"train_rows": 4, "evaluation_rows": 2, "max_length": 32}
    sections["evaluation"]["generation"] = {"examples": 0}
    sections["run"] |= {"save_every": 2}
    train(Recipe.model_validate(sections), name="lora", display=NoDisplay())
    return root


@pytest.fixture
def folder(made, tmp_path) -> Path:
    """A copy of it, with other runs made from its record: failed, killed, and with a record that cannot be read."""
    root = tmp_path / "runs"
    shutil.copytree(made, root)
    source = root / "group" / "lora"
    for name, status in (("failed", "failed"), ("killed", "running")):
        shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("weights", "checkpoints", "MANIFEST.json"))
        record = json.loads((root / name / "result.json").read_text())
        record |= {"status": status, "metrics": {}, "saved_step": None}
        record["recipe"]["method"] |= {"rank": 16}
        (root / name / "result.json").write_text(json.dumps(record))
    shutil.copytree(source, root / "odd")
    (root / "odd" / "result.json").write_text("[1")
    return root


@pytest.fixture
def command(capsys):
    """Return a function that runs a command line in this process, and returns its exit code and what it printed."""

    def call(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = run(arguments)
        return code, capsys.readouterr().out

    return call


def names(entries) -> list[str]:
    return [entry.path.name for entry in entries]


def test_runs_are_found_at_any_depth_and_a_damaged_record_costs_one_run(folder):
    entries = catalogue.find_runs(folder)
    assert names(entries) == ["failed", "lora", "killed", "odd"]
    assert [entry.state for entry in entries] == ["failed", "finished", "killed", "damaged"]
    record = RunDirectory.open(folder / "group" / "lora").read_result()
    values = entries[1].values
    assert values["trainable"] == record.parameters.trainable
    assert values["metric"] == values["after.loss"] == record.metrics["after"]["loss"]
    assert "result.json" in entries[3].fault


def test_a_run_in_use_is_running_and_not_killed(folder):
    with RunDirectory(folder / "killed").lock():
        assert catalogue.read_entry(folder / "killed").state == "running"
        assert [one.path.name for one in catalogue.find_removable(catalogue.find_runs(folder))] == [
            "failed", "checkpoints",
        ]  # fmt: skip
    assert catalogue.read_entry(folder / "killed").state == "killed"


@pytest.mark.parametrize(
    ("conditions", "wanted"),
    [
        (["method.rank=16"], ["failed", "killed"]),
        (["method.rank=16", "state=killed"], ["killed"]),
        (["method.rank<=4"], ["lora"]),
        (["metric<1000"], ["lora"]),
        (["metric=null"], ["failed", "killed", "odd"]),
        (["state!=finished"], ["failed", "killed", "odd"]),
        (["method.dora=false", "method.rank!=16"], ["lora"]),
        (["tags=paper"], []),
    ],
)
def test_conditions_select_runs(folder, conditions, wanted):
    assert names(catalogue.select(catalogue.find_runs(folder), conditions)) == wanted


@pytest.mark.parametrize(
    ("condition", "message"),
    [("method.rnk=4", "no run has this value; did you mean 'method.rank'?"), ("finished", "write KEY=VALUE")],
)
def test_a_condition_that_says_nothing_is_refused(folder, condition, message):
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        catalogue.select(catalogue.find_runs(folder), [condition])


def test_runs_without_a_value_come_last_in_both_orders(folder):
    entries = catalogue.find_runs(folder)
    for descending in (False, True):
        assert names(catalogue.sort(entries, "metric", descending))[0] == "lora"
    assert names(catalogue.sort(entries, "method.rank", True))[:2] == ["failed", "killed"]


def test_tags_are_kept_added_once_and_removed(folder, command):
    lora = folder / "group" / "lora"
    assert catalogue.change_tags(lora, ["paper", "best", "paper"], remove=False) == ("paper", "best")
    assert names(catalogue.select(catalogue.find_runs(folder), ["tags=best"])) == ["lora"]
    assert catalogue.change_tags(lora, ["paper"], remove=True) == ("best",)
    with pytest.raises(UsageError, match="a tag has up to 40"):
        catalogue.change_tags(lora, ["two words"], remove=False)
    assert command("verify", str(lora))[0] == 0


def test_two_runs_differ_where_they_do(folder):
    recipe, results = catalogue.compare_two(*(catalogue.read_entry(folder / name) for name in ("group/lora", "failed")))
    assert recipe == {"method.rank": (4, 16)}
    assert results["state"] == ("finished", "failed")
    assert set(results) == {"state", "before.loss", "after.loss"}
    with pytest.raises(StorageError, match=r"result\.json"):
        catalogue.compare_two(catalogue.read_entry(folder / "odd"), catalogue.read_entry(folder / "failed"))


def test_cleaning_lists_first_and_never_removes_what_is_needed(folder, command):
    kept = {path for path in (folder / "group" / "lora").rglob("*") if "checkpoints" not in path.parts}
    code, listed = command("runs", "clean", str(folder))
    assert code == 0
    assert "can be removed; --yes removes it" in listed
    assert (folder / "failed").exists()
    code, _ = command("runs", "clean", str(folder), "--yes")
    assert code == 0
    assert not (folder / "failed").exists()
    assert not (folder / "killed").exists()
    assert kept <= set((folder / "group" / "lora").rglob("*"))
    assert (folder / "odd" / "weights").exists(), "what cannot be read is left alone"
    assert command("verify", str(folder / "group" / "lora"))[0] == 0


def test_a_run_that_was_killed_while_it_replaced_another_is_not_removed_with_it(folder, command):
    killed = folder / "killed"
    shutil.copytree(folder / "group" / "lora", killed / FORMER)
    assert command("runs", "clean", str(folder), "--yes")[0] == 0
    assert (killed / FORMER / "weights").exists()
    assert not (folder / "failed").exists()


def test_a_linked_folder_of_checkpoints_is_not_followed(folder, tmp_path):
    own = folder / "group" / "lora" / "checkpoints"
    shutil.move(own, tmp_path / "elsewhere")
    own.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="is a link"):
        catalogue.remove(catalogue.find_removable([catalogue.read_entry(folder / "group" / "lora")]))
    assert any((tmp_path / "elsewhere").iterdir())


def test_a_list_fits_into_80_columns(folder, command):
    catalogue.change_tags(folder / "group" / "lora", ["a-tag-of-some-length"], remove=False)
    code, text = command("runs", "list", str(folder))
    assert code == 0
    assert max(map(len, text.split("note:")[0].splitlines())) <= 80


def test_a_metric_that_all_runs_have_is_named_once(folder, command):
    _, text = command("runs", "list", str(folder / "group"))
    title, _, *lines = text.splitlines()
    assert "  loss " in title and not any("loss" in line for line in lines)


def test_two_runs_that_are_one_have_no_difference(folder, command):
    code, text = command("runs", "diff", *[str(folder / "group" / "lora")] * 2)
    assert code == 0 and text.count("no difference") == 2 and "method." not in text


def test_a_run_made_again_is_equal_to_the_bit(folder):
    found = reproduce(folder / "group" / "lora")
    assert (found["equal"], found["files"], found["metrics"]) == (True, [], {})
    assert found["different"] == {}


def test_another_result_is_told_by_file_and_metric(folder, tmp_path):
    lora = folder / "group" / "lora"
    recipe = lora / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("seed: 0", "seed: 1"))
    (lora / "MANIFEST.json").unlink()  # an earlier version wrote none: nothing says that the recipe has changed
    found = reproduce(lora, tmp_path / "again")
    assert not found["equal"]
    assert any(name.startswith("weights/") for name in found["files"])
    assert "after loss" in found["metrics"]


def test_what_is_different_here_is_named(folder):
    result = RunDirectory.open(folder / "group" / "lora").read_result()
    here = json.loads(json.dumps(result.environment))
    here["versions"]["torch"], here["threads"] = "9.9", 77
    old = result.environment
    assert different_environment(result, here) == {
        "torch": (old["versions"]["torch"], "9.9"), "threads": (old["threads"], 77),
    }  # fmt: skip
    with pytest.raises(StorageError, match="the run is failed"):
        describe_run(folder / "failed")


def test_differences_are_written_for_a_person():
    assert describe_value("peak_bytes", 112_125_488) == "106.9 MiB"
    assert describe_value("trainable", 175_104) == "175,104"
    assert [describe_value("method.dora", value) for value in (False, None)] == ["false", "-"]
    assert describe_value("after.loss", 4.2014912) == "4.20149"
