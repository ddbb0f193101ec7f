"""Checkpoints are found by step, rotated, replaced and cleaned; nothing else in the folder is touched."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from peftlab.checkpoint.store import clean_leftovers, find_latest, list_steps, rotate, write_checkpoint
from peftlab.errors import StorageError
from tests.checkpoint.conftest import write_files


def content_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_a_checkpoint_comes_back_as_it_was_written(root, tmp_path):
    latest, faults = find_latest(root)
    assert (latest.step, latest.path, faults) == (20, root / "step-000020", [])
    assert latest.manifest.facts == {"world_size": 1, "rate": 1e-4}
    expected = tmp_path / "expected"
    expected.mkdir()
    write_files(20)(expected)
    written = content_of(latest.path)
    written.pop("MANIFEST.json")
    assert written == content_of(expected)
    assert latest.manifest.size_bytes == sum(map(len, written.values()))
    assert sorted(path.name for path in root.iterdir()) == ["step-000010", "step-000020"]


def test_no_folder_and_an_empty_folder_hold_no_checkpoint(tmp_path):
    assert find_latest(tmp_path / "absent") == (None, [])
    assert find_latest(tmp_path) == (None, [])
    clean_leftovers(tmp_path / "absent")


def test_order_is_by_step_however_the_clock_was_set(root):
    write_checkpoint(root, 1_000_000, write_files(1_000_000), {})
    os.utime(root / "step-000010", (4e9, 4e9))
    os.utime(root / "step-1000000", (0, 0))
    os.utime(root / "step-1000000" / "MANIFEST.json", (0, 0))
    assert find_latest(root)[0].step == 1_000_000
    assert rotate(root, keep=1, protected=set()) == [10, 20]


def test_rotation_keeps_the_highest_and_the_protected(root):
    for step in (30, 40, 50):
        write_checkpoint(root, step, write_files(step), {})
    assert rotate(root, keep=2, protected={20}) == [10, 30]
    assert list(list_steps(root)) == [20, 40, 50]
    assert rotate(root, keep=2, protected={20}) == []
    assert sorted(path.name for path in root.iterdir()) == ["step-000020", "step-000040", "step-000050"]
    with pytest.raises(ValueError):
        rotate(root, keep=0, protected=set())


def test_a_checkpoint_of_the_same_step_is_replaced(root):
    (root / "step-000020" / "optimizer.bin").write_bytes(b"damaged")
    write_checkpoint(root, 20, write_files(21), {"again": True})
    latest, faults = find_latest(root)
    assert (latest.manifest.facts, faults) == ({"again": True}, [])
    assert b"21" in (latest.path / "optimizer.bin").read_bytes()
    assert sorted(path.name for path in root.iterdir()) == ["step-000010", "step-000020"]


def test_a_root_that_another_process_makes_meanwhile_is_taken(tmp_path, monkeypatch):
    root = tmp_path / "run" / "checkpoints"
    is_dir = Path.is_dir

    def made_just_after(path):
        found = is_dir(path)
        if path == root:
            os.makedirs(path, exist_ok=True)
        return found

    monkeypatch.setattr(Path, "is_dir", made_just_after)
    assert write_checkpoint(root, 1, write_files(1), {}) == root / "step-000001"


def test_leftovers_are_cleaned_and_nothing_else(root, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    for name in (".step-000030.7.partial", ".step-000020.7.former"):
        shutil.copytree(root / "step-000010", root / name)
    strangers = [".step-000030.partial", "step-30", ".step-000030.x.partial", "notes", ".step-000030.7.partial.old"]
    for name in strangers:
        (root / name).mkdir()
    (root / ".step-000031.7.partial").write_text("a file of this name is not ours")
    (root / ".step-000032.7.partial").symlink_to(elsewhere)
    clean_leftovers(root)
    links = [".step-000031.7.partial", ".step-000032.7.partial"]
    assert sorted(p.name for p in root.iterdir()) == sorted([*strangers, *links, "step-000010", "step-000020"])
    assert (elsewhere / "kept").exists()


def test_a_killed_replacement_gives_the_former_one_its_place_back(root):
    os.rename(root / "step-000020", root / ".step-000020.7.former")
    assert find_latest(root)[0].step == 10
    clean_leftovers(root)
    assert find_latest(root)[0].step == 20


def test_a_leftover_of_the_same_process_id_is_in_nobodys_way(root):
    leftover = root / f".step-000030.{os.getpid()}.partial"
    shutil.copytree(root / "step-000010", leftover)
    write_checkpoint(root, 30, write_files(30), {})
    assert find_latest(root)[0].step == 30
    assert not leftover.exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError("a bug"), StorageError("no room")])
def test_a_writer_that_raises_leaves_no_trace(root, error):
    def write(folder):
        write_files(30)(folder)
        raise error

    before = content_of(root)
    with pytest.raises(error if isinstance(error, type) else type(error)):
        write_checkpoint(root, 30, write, {})
    assert content_of(root) == before


def test_every_file_is_on_the_disk_before_the_folder_gets_its_name(tmp_path, monkeypatch):
    operations = []
    sync, rename = os.fsync, os.rename

    def note_sync(descriptor):
        operations.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    def note_rename(source, target):
        operations.append("renamed")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "rename", note_rename)
    root = tmp_path.resolve() / "checkpoints"
    write_checkpoint(root, 1, write_files(1), {})
    partial = str(root / f".step-000001.{os.getpid()}.partial")
    named = operations.index("renamed")
    files = ["/optimizer.bin", "/progress.json", "/weights/adapter.bin", "/MANIFEST.json"]
    assert [operation for operation in operations[1:named] if "." in operation.removeprefix(partial)] == [
        partial + name for name in files
    ]
    assert set(operations[1 + len(files) : named]) == {partial, partial + "/weights"}
    assert operations[0] == str(root.parent) and operations[named + 1 :] == [str(root)]
