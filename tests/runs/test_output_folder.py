"""A folder that a command writes is there whole or not at all, and an error says which file is at fault."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from peftlab.errors import StorageError, UsageError
from peftlab.runs.output_folder import put_in_place, refuse_output, temporary_folder


def test_a_damaged_source_is_not_called_a_full_disk(tmp_path):
    save_file({"a": torch.zeros(64)}, source := tmp_path / "adapter.safetensors")
    source.write_bytes(source.read_bytes()[:100])
    with (
        pytest.raises(
            StorageError, match="out: not written: the weights that it is made of cannot be read: .*verify RUN"
        ),
        temporary_folder(tmp_path / "out"),
    ):
        load_file(source)
    assert list(tmp_path.iterdir()) == [source]


def test_a_disk_that_is_full_is_named(tmp_path):
    with (
        pytest.raises(StorageError, match="out: cannot be written: .*No space left.*; free some space"),
        temporary_folder(tmp_path / "out"),
    ):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["file/out", "file/a/b/out"])
def test_a_place_below_a_file_is_named_and_no_disk_is_blamed(place, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="file is a file, not a folder; choose another place"):
        refuse_output(tmp_path / place, tmp_path / "run", False, "merge.json", "a merged model")
    with pytest.raises(StorageError, match="(Not a directory|File exists); check the path"):
        temporary_folder(tmp_path / place).__enter__()


def test_what_a_killed_process_left_is_removed_and_what_another_writes_is_not(tmp_path):
    (tmp_path / ".out.mine").mkdir()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with temporary_folder(tmp_path / "out") as folder:
            (folder / "model.safetensors").write_text("half")
            os.write(write, b".")
            signal.pause()
    os.read(read, 1)
    (left,) = tmp_path.glob(".out.peftlab-*")
    with temporary_folder(tmp_path / "out"):
        assert (left / "model.safetensors").exists(), "its process lives"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with temporary_folder(tmp_path / "out") as folder:
        assert sorted(tmp_path.iterdir()) == [tmp_path / ".out.mine", folder]
    assert [path.name for path in tmp_path.iterdir()] == [".out.mine"]


@pytest.mark.parametrize("place", [".", "..", "a/.."])
def test_a_place_without_a_name_is_refused(place, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(UsageError, match="name a new folder"):
        refuse_output(Path(place), tmp_path / "run", False, "merge.json", "a merged model")


def test_what_is_replaced_is_gone_only_when_the_new_folder_is_there(tmp_path, monkeypatch):
    out = tmp_path / "out"
    (out / "old").mkdir(parents=True)

    def fail(self, target):
        raise OSError(errno.EACCES, "Permission denied")

    with pytest.raises(StorageError, match="Permission denied"), temporary_folder(out) as folder:
        (folder / "new").mkdir()
        monkeypatch.setattr(Path, "rename", fail)
        put_in_place(folder, out)
    assert (out / "old").exists()
    monkeypatch.undo()
    with temporary_folder(out) as folder:
        (folder / "new").mkdir()
        put_in_place(folder, out)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "new"]
