"""Where a run may write: its own directory and nothing else, whatever lies there already."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from .conftest import train_once

NOBODY = 65534


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def unprivileged():
    """Act as a user whom read-only folders stop; root is stopped by nothing."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory):
    """A run that stopped after its first step, with a checkpoint."""
    return train_once(tmp_path_factory.mktemp("stopped"), "run.save_every=1", "run.stop_after=1", code=11)


@pytest.fixture
def stopped(user, stopped_once):
    return shutil.copytree(stopped_once, user.output)


@pytest.mark.parametrize("option", [[], ["--overwrite"], ["--resume"]])
def test_a_folder_of_another_project_is_left_as_it_is(user, option):
    user.output.mkdir()
    for name in ("weights", "result.json", "loss.png"):
        (user.output / name).write_text('"mine"')
    before = tree(user.output)
    answer = user.run("train", user.recipe(), *option)
    assert answer.code == 8 and "run of peftlab" in answer.error or "run directory of peftlab" in answer.error
    assert tree(user.output) == before


def test_a_run_that_lost_its_marker_is_not_ours_any_more(user, stopped):
    (stopped / ".peftlab").unlink()
    before = tree(stopped)
    assert "contains files that are not a run of peftlab" in user.train("--overwrite").error
    assert tree(stopped) == before


@pytest.mark.parametrize("option", ["--overwrite", "--resume"])
@pytest.mark.parametrize("name", ["checkpoints", "weights", "metrics.jsonl", "recipe.yaml", "result.json"])
def test_a_link_in_a_run_directory_leads_nowhere(user, stopped, name, option):
    outside = user.folder / "outside"
    outside.mkdir()
    (outside / "precious").write_text('{"status": "failed"}')
    link = stopped / name
    if link.is_dir():
        link.rename(stopped / "moved")
    link.unlink(missing_ok=True)
    link.symlink_to(outside if "." not in name else outside / "precious")
    answer = user.train("run.save_every=1", option)
    assert answer.code == 8 and f"{link} is a link; a run writes in its own directory only" in answer.error
    assert tree(outside) == {"precious": b'{"status": "failed"}'}


def test_dots_in_a_path_lead_where_they_say_and_the_rest_is_left_alone(user):
    (user.folder / "a").mkdir()
    (user.folder / "b.txt").write_text("mine")
    answer = user.run("train", user.recipe(), f"run.output={user.folder}/a/../c")
    assert answer.code == 0 and (user.folder / "c" / "weights").is_dir()
    assert list((user.folder / "a").iterdir()) == [] and (user.folder / "b.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("file", "is a file; choose a folder"),
        ("file/run", "Not a directory; choose another folder"),
        ("x" * 256, "File name too long; choose another folder"),
        ("loop/run", "Too many levels of symbolic links; choose another folder"),
    ],
)
def test_a_place_that_can_be_no_folder_is_one_line(user, place, told):
    (user.folder / "file").write_text("mine")
    (user.folder / "loop").symlink_to(user.folder / "loop")
    answer = user.train(f"run.output={user.folder / place}")
    assert (answer.code, (user.folder / "file").read_text()) == (8, "mine")
    assert answer.error.startswith("command line: run.output: ") and told in answer.error


def test_a_home_that_is_not_there_is_one_line(user):
    answer = user.train("run.output=~nobody-is-called-so/run")
    assert answer.code == 8 and "Could not determine home directory; choose another folder" in answer.error


def test_the_tilde_is_the_home(user, monkeypatch):
    monkeypatch.setenv("HOME", str(user.folder))
    assert user.train("run.output=~/mine").code == 0
    assert (user.folder / "mine" / "weights").is_dir()


def test_a_read_only_folder_is_one_line_before_any_work(user):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders let nobody but their owner in
        recipe = Path(shutil.copy(user.recipe(), folder))
        os.chmod(folder, 0o555)
        with unprivileged():
            answer = user.run("train", recipe, f"run.output={folder}/run")
    assert answer.code == 8 and "Permission denied; choose another folder" in answer.error


def test_a_picture_that_cannot_be_drawn_ends_nothing(user, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("peftlab.runs.save.draw_losses", refuse)
    answer = user.train()
    assert (answer.code, answer.status) == (0, "finished")
    assert any("loss.png cannot be drawn: OSError" in line for line in answer.lines)


def test_a_finished_run_is_not_lost_to_a_second_one(user):
    assert user.train().code == 0
    before = tree(user.output)
    assert "already contains a run; set run.output=OTHER, or --overwrite" in user.train().error
    after = tree(user.output)
    assert {**after, ".lock": b""} == {**before, ".lock": b""}
