from __future__ import annotations

import os

import pytest

from peftlab.errors import StorageError
from peftlab.files import write_atomically
from peftlab.reports import RunResult
from peftlab.runs.directory import RunDirectory, open_directory


def create(path, overwrite=False):
    directory = RunDirectory.claim(path)
    directory.make_room(overwrite)
    return directory


def finished(path):
    directory = create(path)
    directory.write_result(RunResult(status="finished", name="x", recipe={}, environment={}))
    return directory


def test_a_result_reads_back_as_it_was_written(tmp_path):
    directory = finished(tmp_path / "run")
    assert RunDirectory.open(tmp_path / "run").read_result() == directory.read_result()
    assert directory.read_result().status == "finished"


def test_a_finished_run_is_not_replaced_without_overwrite(tmp_path):
    finished(tmp_path / "run")
    with pytest.raises(StorageError, match="already contains a run; set run.output=OTHER, or --overwrite"):
        create(tmp_path / "run")


def test_overwriting_removes_the_run_and_nothing_else(tmp_path):
    directory = finished(tmp_path / "run")
    directory.weights.mkdir()
    (directory.path / "notes.txt").write_text("mine")
    create(tmp_path / "run", overwrite=True)
    assert not directory.result.exists() and not directory.weights.exists()
    assert (directory.path / "notes.txt").read_text() == "mine"


def test_a_folder_with_other_files_is_refused_even_with_overwrite(tmp_path):
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(StorageError, match="contains files that are not a run of peftlab"):
        create(tmp_path, overwrite=True)
    assert (tmp_path / "result.json").read_text() == "{}"


def test_a_file_is_not_a_run_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="is a file; choose a folder"):
        create(tmp_path / "file")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write to .*file/run: Not a directory"):
        create(tmp_path / "file" / "run")


def test_opening_another_folder_is_one_line(tmp_path):
    with pytest.raises(StorageError, match="is not a run directory of peftlab"):
        RunDirectory.open(tmp_path)


def test_a_damaged_result_is_named(tmp_path):
    directory = finished(tmp_path / "run")
    directory.result.write_text('{"status": "fin')
    with pytest.raises(StorageError, match="result.json: is damaged: it is not JSON"):
        directory.read_result()


def test_a_folder_gets_its_name_only_when_it_is_complete(tmp_path):
    directory = RunDirectory(tmp_path)
    with pytest.raises(RuntimeError), directory.writing(directory.weights) as temporary:
        (temporary / "a").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    for text in ("first", "second"):
        with directory.writing(directory.weights) as temporary:
            (temporary / "a").write_text(text)
    assert (directory.weights / "a").read_text() == "second"
    assert os.listdir(tmp_path) == ["weights"]


def test_a_failed_write_keeps_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_run_that_failed_before_it_saved_anything_is_replaced(tmp_path):
    directory = create(tmp_path / "run")
    directory.write_result(RunResult(status="failed", name="x", recipe={}, environment={}, error="no such file"))
    create(tmp_path / "run")
    assert not directory.result.exists()


def test_a_run_that_failed_after_a_checkpoint_is_kept(tmp_path):
    directory = create(tmp_path / "run")
    directory.write_result(RunResult(status="failed", name="x", recipe={}, environment={}))
    (directory.checkpoints / "step-000003").mkdir(parents=True)
    with pytest.raises(StorageError, match="already contains a run; --resume to continue it"):
        create(tmp_path / "run")


def test_a_run_that_ended_before_its_first_checkpoint_was_whole_is_replaced(tmp_path):
    directory = create(tmp_path / "run")
    directory.write_result(RunResult(status="running", name="x", recipe={}, environment={}))
    (directory.checkpoints / ".step-000003.17.partial").mkdir(parents=True)
    create(tmp_path / "run")
    assert not directory.checkpoints.exists()


def test_overwriting_keeps_the_earlier_run_until_the_new_one_has_saved_something(tmp_path):
    earlier = finished(tmp_path / "run")
    with pytest.raises(RuntimeError), open_directory(tmp_path / "run", True, True, False) as directory:
        assert not directory.result.exists()
        directory.write_result(RunResult(status="failed", name="new", recipe={}, environment={}))
        raise RuntimeError
    assert earlier.read_result().name == "x"
    with open_directory(tmp_path / "run", True, True, False) as directory:
        directory.write_result(RunResult(status="failed", name="new", recipe={}, environment={}))
        directory.weights.mkdir()
        directory.forget_former()
    assert earlier.read_result().name == "new" and not (tmp_path / "run" / ".former").exists()


def test_a_killed_overwrite_gives_the_earlier_run_back(tmp_path):
    earlier = finished(tmp_path / "run")
    earlier.make_room(overwrite=True)
    earlier.write_result(RunResult(status="running", name="killed", recipe={}, environment={}))
    earlier.clean()
    assert earlier.read_result().name == "x"


@pytest.mark.parametrize("name", ["scores.json", "MANIFEST.json", "loss.png", ".peftlab"])
def test_half_files_of_killed_processes_are_removed(tmp_path, name):
    directory = finished(tmp_path / "run")
    (directory.path / f".{name}.4711").write_text("ha")
    directory.clean()
    assert not (directory.path / f".{name}.4711").exists()
