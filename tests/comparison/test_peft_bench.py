"""PEFT's method comparison: its files read and drawn beside a comparison, and a comparison written as such files."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from peftlab.cli.app import run
from peftlab.comparison.peft_bench import BenchResult, read_results
from peftlab.comparison.peft_bench_export import write_results
from peftlab.comparison.report.write import write_report
from peftlab.comparison.rows import read_table
from peftlab.errors import StorageError, UsageError

from .folders import TRAINABLE, Maker


def bench(name: str = "lora/small", peft_type: str | None = "LORA", accuracy: float = 0.41, **changes) -> dict:
    """Return a result with the keys that a file of the comparison has."""
    result = {
        "run_info": {
            "created_at": "2026-05-04T10:00:00+00:00", "total_time": 900.5, "experiment_name": name,
            "peft_branch": "main", "train_config": {"model_id": "org/some-3B", "seed": 0, "batch_size": 4},
            "peft_config": peft_type and {"peft_type": peft_type, "r": 8}, "error_msg": "",
        },
        "train_info": {
            "accelerator_memory_reserved_avg": 12 * 2**30, "accelerator_memory_max": 20 * 2**30,
            "accelerator_memory_reserved_99th": 18 * 2**30, "train_time": 800.25, "file_size": 9_000_000,
            "num_trainable_params": 2_300_000, "num_total_params": 3_200_000_000, "status": "success",
            "metrics": [
                {"step": 250, "valid accuracy": 0.2, "train loss": 1.1, "train samples": 1000},
                {"step": 500, "test accuracy": accuracy, "train loss": 0.7, "train samples": 2000,
                 "train total tokens": 400_000, "forgetting": 0.25},
            ],
        },
        "meta_info": {"package_info": {"peft-version": "0.21.0"}, "system_info": {"system": "Linux"}},
    }  # fmt: skip
    for place, value in changes.items():
        section, _, key = place.partition("__")
        result[section][key] = value
    return result


def write(path: Path, result: object) -> Path:
    path.write_text(json.dumps(result))
    return path


def test_a_file_is_read_with_its_costs_and_its_last_metrics(tmp_path):
    found = read_results([write(tmp_path / "a.json", bench())], notes := [])
    assert notes == [] and found == [
        BenchResult(
            name="lora/small", method="LORA", model="org/some-3B", trainable=2_300_000, stored_bytes=9_000_000,
            memory_bytes=20 * 2**30, seconds=800.25, accuracy=0.41, forgetting=0.25,
            created=datetime(2026, 5, 4, 10, tzinfo=UTC),
        )
    ]  # fmt: skip


def test_a_folder_gives_the_latest_run_of_each_experiment_best_first(tmp_path):
    write(tmp_path / "old.json", bench(accuracy=0.9, run_info__created_at="2025-01-01T00:00:00+00:00"))
    write(tmp_path / "new.json", bench())
    write(tmp_path / "full.json", bench("full/plain", None, 0.5))
    write(tmp_path / "early.json", bench("ia3/x", "IA3", 0.3, train_info__num_trainable_params=None))
    write(tmp_path / "lost.json", bench("oft/x", "OFT", train_info__status="cancelled"))
    found = read_results([tmp_path], notes := [])
    assert [(one.name, one.method, one.accuracy, one.trainable) for one in found] == [
        ("full/plain", "full fine-tuning", 0.5, 2_300_000), ("lora/small", "LORA", 0.41, 2_300_000),
        ("ia3/x", "IA3", 0.3, None),
    ]  # fmt: skip
    assert notes == [
        f"{tmp_path / 'lost.json'}: the run's status is 'cancelled'; it is left out",
        "--import: of each experiment the latest run is shown; left out as older: old.json (1)",
    ]


def test_the_latest_run_is_the_latest_in_time_wherever_its_clock_stands(tmp_path):
    """11:00 in Paris is 09:00 UTC in summer, and so before 10:00 UTC, which sorts before it as text."""
    write(tmp_path / "paris.json", bench(accuracy=0.9, run_info__created_at="2026-05-04T11:00:00+02:00"))
    write(tmp_path / "utc.json", bench(accuracy=0.4, run_info__created_at="2026-05-04T10:00:00Z"))
    assert [one.accuracy for one in read_results([tmp_path], [])] == [0.4]


def test_one_name_on_other_data_is_another_experiment_and_one_file_named_twice_is_one_run(tmp_path):
    for name, accuracy in (("gsm8k", 0.4), ("arc", 0.7)):
        result = bench(accuracy=accuracy)
        result["meta_info"]["dataset_info"] = {name: {"sha": None}}
        write(tmp_path / f"{name}.json", result)
    found = read_results([tmp_path, tmp_path / "arc.json"], notes := [])
    assert [(one.data, one.accuracy) for one in found] == [(("arc",), 0.7), (("gsm8k",), 0.4)] and notes == []


def test_files_of_2025_and_files_with_a_byte_order_mark_are_read(tmp_path):
    result = bench()
    result["train_info"]["cuda_memory_max"] = result["train_info"].pop("accelerator_memory_max")
    (tmp_path / "old.json").write_text(json.dumps(result), encoding="utf-8-sig")
    assert [one.memory_bytes for one in read_results([tmp_path], [])] == [20 * 2**30]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"train_info__file_size": None},
            "train_info.file_size is missing; a result of PEFT's method comparison (MetaMathQA) has a number",
        ),
        ({"train_info__train_time": "long"}, 'train_info.train_time is "long"'),
        ({"train_info__metrics": []}, "train_info.metrics[-1].test accuracy is missing"),
        ({"run_info__peft_config": {"r": 8}}, "run_info.peft_config.peft_type is missing"),
        ({"train_info__metrics": [{"test accuracy": True}]}, "train_info.metrics[-1].test accuracy is true"),
        (
            {"train_info__metrics": [{"test accuracy": 41.0}]},
            "train_info.metrics[-1].test accuracy is 41.0; a result of PEFT's method comparison (MetaMathQA) has a "
            "number from 0 to 1 there",
        ),
        ({"train_info__metrics": [{"test accuracy": -0.1}]}, "train_info.metrics[-1].test accuracy is -0.1"),
        ({"train_info__train_time": -3.5}, "train_info.train_time is -3.5"),
        ({"train_info__num_trainable_params": -1}, "train_info.num_trainable_params is -1"),
        ({"run_info__created_at": "yesterday"}, 'run_info.created_at is "yesterday"; '),
    ],
)
def test_a_file_without_a_value_is_named_with_its_place(tmp_path, changes, told):
    path = write(tmp_path / "a.json", bench(**changes))
    with pytest.raises(StorageError, match=re.escape(f"{path}: {told}")):
        read_results([path], [])


@pytest.mark.parametrize("text", ["{", "[1, 2]", '"text"', "null"])
def test_another_kind_of_file_is_one_line(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(StorageError, match=re.escape(str(path))) as raised:
        read_results([path], [])
    assert "\n" not in str(raised.value)


def test_a_foreign_or_broken_file_of_a_folder_is_left_out_with_its_reason(tmp_path):
    write(tmp_path / "good.json", bench())
    write(tmp_path / "other.json", {"hello": 1})
    (tmp_path / "cut.json").write_text('{"run_info": ')
    found = read_results([tmp_path], notes := [])
    assert [one.name for one in found] == ["lora/small"]
    assert [note.partition(": ")[2].partition(": ")[0] for note in notes] == [
        str(tmp_path / name) for name in ("cut.json", "other.json")
    ]
    assert "train_info.status is missing" in notes[1] and all(note.endswith("; it is left out") for note in notes)
    with pytest.raises(StorageError, match=re.escape(f"{tmp_path / 'other.json'}: train_info.status is missing")):
        read_results([tmp_path / "good.json", tmp_path / "other.json"], [])


def test_a_folder_of_which_no_file_can_be_read_is_an_error(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.json", {"hello": 1})
    with pytest.raises(StorageError, match=r"a\.json: train_info\.status is missing.*none of 2 files in"):
        read_results([tmp_path], [])


def test_a_path_without_results_is_one_line(tmp_path):
    with pytest.raises(StorageError, match="the file does not exist"):
        read_results([tmp_path / "none.json"], [])
    with pytest.raises(StorageError, match=r"the folder has no \.json file"):
        read_results([tmp_path], [])


@pytest.fixture(scope="module")
def accuracy(tmp_path_factory):
    """The folder of a comparison by accuracy."""
    folder = tmp_path_factory.mktemp("accuracy")
    return Maker(folder, methods=("lora", "full"), rows=40, metric="accuracy", seeds=(0, 1)).write()


def test_imported_results_are_drawn_beside_the_comparisons_own(accuracy, tmp_path):
    files = [write(tmp_path / "a.json", bench()), write(tmp_path / "b.json", bench("full/<plain>", None, 0.5))]
    page = write_report(accuracy, imported=files).page.read_text()
    assert "<h2>Imported results</h2>" in page and "full/&lt;plain&gt;" in page and "org/some-3B" in page
    for cost in ("trainable", "memory", "seconds"):
        picture = (accuracy / "report" / f"imported_{cost}.svg").read_text()
        assert ">imported, 2 runs<" in picture and ">lora<" in picture and ">full<" in picture
    assert "Imported" not in write_report(accuracy).page.read_text()


def test_a_comparison_without_accuracy_says_that_its_variants_are_not_in_the_pictures(tmp_path):
    folder = Maker(tmp_path, methods=("lora",), rows=20).write()
    written = write_report(folder, imported=[write(tmp_path / "a.json", bench())])
    assert "This comparison measured loss and has no accuracy to draw beside them." in written.page.read_text()
    assert ">lora<" not in (folder / "report" / "imported_memory.svg").read_text()


def test_exported_runs_are_read_back_as_they_were(accuracy):
    table = read_table(accuracy)
    files = write_results(table, accuracy / "report" / "peft-bench", [])
    found = {one.name: one for one in read_results(files, [])}
    assert len(found) == len(files) == 4
    for row in table.rows:
        for trial in row.trials:
            one = found[f"{row.variant.method}/{row.label}-seed-{trial.report.seed}"]
            assert (one.accuracy, one.trainable) == (trial.report.test, TRAINABLE[row.name])
            assert one.stored_bytes == 4 * TRAINABLE[row.name] and one.memory_bytes == trial.peak_bytes("measured")
            general = trial.metrics["general_after"]["loss"] - trial.metrics["general_before"]["loss"]
            assert one.forgetting == pytest.approx(general) and one.seconds == trial.training_seconds
            assert one.method == ("full fine-tuning" if row.name == "full" else "LORA")
            assert one.model == "builtin:tiny" and one.created.year >= 2025
    file = json.loads(files[0].read_text())
    assert file["run_info"]["train_config"]["optimizer_kwargs"]["lr"] == 1e-3
    assert {"system_info", "package_info", "dataset_info", "model_info"} <= set(file["meta_info"])
    steps = [line["step"] for line in file["train_info"]["metrics"]]
    assert steps == sorted(steps[:-1]) + steps[-1:]


def test_a_run_without_a_logged_loss_is_exported_as_json_that_every_reader_takes(accuracy):
    table = read_table(accuracy)
    for row in table.rows:
        for trial in row.trials:
            trial.history[:] = [line for line in trial.history if line["event"] != "train"]
    for file in write_results(table, accuracy / "report" / "silent", []):
        found = json.loads(file.read_text(), parse_constant=pytest.fail)
        assert found["train_info"]["metrics"][-1]["train loss"] is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, -(10**400)])
@pytest.mark.parametrize("place", ["accuracy", "train_time", "accelerator_memory_max"])
def test_a_number_that_no_run_can_have_is_one_line(place, value, tmp_path):
    result = bench(**({} if place == "accuracy" else {f"train_info__{place}": value}))
    if place == "accuracy":
        result["train_info"]["metrics"][-1]["test accuracy"] = value
    with pytest.raises(StorageError, match=r"(?s)one\.json: train_info\..* has a number there$") as error:
        read_results([write(tmp_path / "one.json", result)], [])
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def change_record(folder: Path, run: str, change) -> None:
    path = folder / "runs" / run / "result.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_a_run_without_accuracy_is_not_exported_and_a_damaged_recipe_is_one_line(tmp_path):
    folder = Maker(tmp_path, methods=("lora",), rows=12, metric="accuracy", without=("general", "scores")).write()
    change_record(folder, "lora-0-0.001-0", lambda record: record["metrics"]["test_after"].pop("accuracy"))
    change_record(folder, "lora-0-0.001-1", lambda record: record["metrics"]["test_after"].update(accuracy=None))
    written = write_results(read_table(folder), tmp_path / "out", notes := [])
    assert notes == [f"--export peft-bench: lora-0-0.001-{seed} has no accuracy and is left out" for seed in (0, 1)]
    assert [path.name for path in written] == ["lora-0-0.001-2.json"] and len(read_results(written, [])) == 1
    change_record(folder, "lora-0-0.001-2", lambda record: record["recipe"].pop("evaluation"))
    with pytest.raises(StorageError, match="lora-0-0.001-2/result.json: is damaged: KeyError: 'evaluation'"):
        write_results(read_table(folder), tmp_path / "out", [])


def test_the_command_writes_and_refuses_in_one_line(accuracy, tmp_path, capsys):
    assert run(["report", str(accuracy), "--export", "peft-bench", "--json"]) == 0
    assert sum("peft-bench" in path for path in json.loads(capsys.readouterr().out)["files"]) == 4
    assert run(["report", str(accuracy), "--export", "csv"]) == 2
    assert "--export 'csv': unknown; known: peft-bench" in capsys.readouterr().err
    loss = read_table(Maker(tmp_path, methods=("lora",), rows=20).write())
    with pytest.raises(UsageError, match="compare with --metric exact_match or accuracy"):
        write_results(loss, tmp_path / "out", [])


def test_a_wrong_file_to_import_is_refused_before_anything_is_computed(accuracy, tmp_path, monkeypatch):
    monkeypatch.setattr("peftlab.comparison.report.write.find", None)
    with pytest.raises(StorageError, match="nowhere.json: the file does not exist"):
        write_report(accuracy, imported=[tmp_path / "nowhere.json"])


def test_memory_that_was_not_measured_is_not_read_back_as_no_memory(tmp_path):
    folder = Maker(tmp_path, methods=("lora",), rows=12, metric="accuracy", seeds=(0,), without=("memory",)).write()
    (file,) = write_results(read_table(folder), tmp_path / "out", [])
    (found,) = read_results([file], [])
    assert found.memory_bytes is None and found.seconds > 0
    assert "not known" in json.loads(file.read_text())["meta_info"]["peftlab"]["notes"][0]
    page = write_report(folder, imported=[file]).page.read_text()
    assert "<td><bdi>0 B</bdi></td>" not in page
    assert not (folder / "report" / "imported_memory.svg").exists()
    assert ">imported, 1 run<" in (folder / "report" / "imported_seconds.svg").read_text()


def test_the_accuracy_that_is_exported_is_the_one_that_the_comparison_reports(tmp_path):
    folder = Maker(tmp_path, methods=("lora",), rows=12, metric="accuracy", seeds=(0,), without=("scores",)).write()
    change_record(folder, "lora-0-0.001-0", lambda record: record["metrics"]["test_after"].update(exact_match=0.125))
    table = read_table(folder)
    (found,) = read_results(write_results(table, tmp_path / "out", []), [])
    assert found.accuracy == table.rows[0].trials[0].report.test != 0.125


def test_files_of_runs_that_are_gone_are_deleted_and_others_stay(tmp_path):
    folder = Maker(tmp_path, methods=("lora", "bitfit"), metric="accuracy", seeds=(0,), rows=10).write()
    bench_folder = folder / "report" / "peft-bench"
    first = write_results(read_table(folder), bench_folder, [])
    kept = [write(bench_folder / "mine.json", bench()), bench_folder / "note.json", bench_folder / "list.json"]
    kept[1].write_text("not JSON")
    kept[2].write_text("[]")
    report = json.loads((folder / "comparison.json").read_text())
    report["variants"] = report["variants"][:1]
    (folder / "comparison.json").write_text(json.dumps(report))
    second = write_results(read_table(folder), bench_folder, [])
    assert len(first) == 2 and len(second) == 1 and set(second) < set(first)
    assert sorted(bench_folder.iterdir()) == sorted([*second, *kept])


def test_variants_that_share_a_run_have_a_file_each(accuracy, tmp_path):
    """Two budgets under which one size is the best share its run: both rows of the table come back."""
    table = read_table(accuracy)
    twin = replace(table.rows[0], label="lora under 2 GiB")
    files = write_results(replace(table, rows=[table.rows[0], twin]), tmp_path, [])
    assert len(set(files)) == 4
    names = [f"lora/{label}-seed-{seed}" for label in ("lora", twin.label) for seed in (0, 1)]
    assert sorted(one.name for one in read_results(files, [])) == sorted(names)


def test_a_loss_that_is_not_finite_is_exported_as_null(accuracy, tmp_path):
    table = read_table(accuracy)
    table.rows[0].trials[0].history.append({"event": "train", "step": 40, "loss": float("nan")})
    file = write_results(table, tmp_path, [])[0]
    found = json.loads(file.read_text(), parse_constant=pytest.fail)
    assert found["train_info"]["metrics"][-1]["train loss"] is None


def test_a_page_does_not_take_the_place_of_what_the_report_reads(accuracy, tmp_path, capsys):
    imported = write(tmp_path / "a.json", bench())
    record = next((accuracy / "runs").glob("*/result.json"))
    for path in (imported, accuracy / "comparison.json", record):
        before = path.read_bytes()
        assert run(["report", str(accuracy), "--import", str(tmp_path), "--output", str(path)]) == 2
        assert f"{path} is read by this command, and would be lost; name another file" in capsys.readouterr().err
        assert path.read_bytes() == before
