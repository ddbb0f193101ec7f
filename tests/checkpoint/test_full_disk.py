"""A disk that is full or fails leaves earlier checkpoints intact and ends with one line."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest

from peftlab.checkpoint.store import find_latest, rotate, write_checkpoint
from peftlab.errors import StorageError
from tests.checkpoint.conftest import write_files
from tests.conftest import REPOSITORY

FULL = OSError(errno.ENOSPC, "No space left on device")


def assert_refused(root, write=None, needed_bytes: int = 0) -> str:
    before = sorted(root.rglob("*"))
    with pytest.raises(StorageError) as caught:
        write_checkpoint(root, 30, write or write_files(30), {}, needed_bytes)
    assert sorted(root.rglob("*")) == before
    latest, faults = find_latest(root)
    assert (latest.step, faults) == (20, [])
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("whole_files", range(3))
def test_a_disk_that_fills_during_any_file(root, whole_files):
    def write(folder):
        for number in range(whole_files):
            (folder / f"{number}.bin").write_bytes(b"whole")
        (folder / "last.bin").write_bytes(b"half of")
        raise FULL

    told = assert_refused(root, write)
    assert "step-000030: cannot be written: No space left on device" in told and "free some space" in told


@pytest.mark.parametrize("number", range(9))
def test_a_disk_that_fails_at_any_sync(root, monkeypatch, number):
    """Three files, the manifest and two folders are synced; then nothing is refused any more but the name."""
    left, sync = [number], os.fsync

    def fail_later(descriptor):
        left[0] -= 1
        if left[0] == -1:
            raise OSError(errno.EIO, "Input/output error")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_later)
    if number < 6:
        assert "Input/output error" in assert_refused(root)
    elif number == 6:
        with pytest.raises(StorageError, match="Input/output error"):
            write_checkpoint(root, 30, write_files(30), {})
        assert find_latest(root)[0].step == 30, "whole and named, though a power cut could still undo the name"
    else:
        write_checkpoint(root, 30, write_files(30), {})
        assert left[0] == number - 7, "no more syncs than these"


@pytest.mark.parametrize("step", [20, 30])
def test_a_refused_name_gives_the_former_one_its_place_back(root, monkeypatch, step):
    rename = os.rename

    def refuse(source, target):
        if str(source).endswith(".partial"):
            raise FULL
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    before = sorted(root.rglob("*"))
    with pytest.raises(StorageError, match="No space left"):
        write_checkpoint(root, step, write_files(step), {})
    assert sorted(root.rglob("*")) == before
    assert find_latest(root)[0].step == 20


def test_too_little_room_is_refused_before_anything_is_written(root, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, 10**9))

    def write(folder):
        raise AssertionError("nothing may be written")

    told = assert_refused(root, write, needed_bytes=10**9)
    assert "needs 1,028 MB, but only 1,000 MB are free" in told and "--resume" in told
    write_checkpoint(root, 30, write_files(30), {}, needed_bytes=9 * 10**8)


def test_a_root_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="step-000001: cannot be written: "):
        write_checkpoint(tmp_path / "file", 1, write_files(1), {})


def test_a_checkpoint_that_cannot_be_removed_is_one_line(root, monkeypatch):
    def refuse(path, **_):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(StorageError, match="step-000010: cannot be removed: Permission denied"):
        rotate(root, keep=1, protected=set())


# Runs inside a file system of its own. A file of ballast leaves so many pages free that the disk fills during
# each file of the checkpoint in turn (they take a page each), then during large ones.
REAL_DISK = r"""
import os, shutil, sys, torch
from pathlib import Path
from peftlab.checkpoint import store
from peftlab.checkpoint.tensors import load_state, save_state
from peftlab.errors import StorageError

root, ballast, written = Path(sys.argv[1]) / "checkpoints", Path(sys.argv[1]) / "ballast", []
store.SPARE_BYTES = 0

def write(folder):
    for name in ("first", "second"):
        save_state(folder, name, torch.full((values,), float(values)))
        written.append(name)

def attempt(step):
    written.clear()
    try:
        store.write_checkpoint(root, step, write, {})
    except StorageError as error:
        assert "No space left on device" in str(error) and "\n" not in str(error), error
        latest, faults = store.find_latest(root)
        assert latest.step == 1 and not faults and os.listdir(root) == ["step-000001"], faults
        assert load_state(latest.path, "second").eq(100).all()
        return len(written)
    return None

values = 100
assert attempt(1) is None
files_before_the_end = []
for pages in range(7):
    free = os.statvfs(root).f_bavail - pages
    ballast.write_bytes(bytes(free * os.statvfs(root).f_bsize))
    files_before_the_end.append(attempt(2))
    ballast.unlink()
    shutil.rmtree(root / "step-000002", ignore_errors=True)
assert files_before_the_end == [0, 0, 1, 1, 2, None, None], files_before_the_end
for values, done in ((2_000_000, 1), (10_000_000, 0)):
    assert attempt(2) == done, values
store.SPARE_BYTES = 1_000_000
try:
    store.write_checkpoint(root, 2, write, {}, needed_bytes=12_000_000)
except StorageError as error:
    assert "are free" in str(error), error
else:
    raise AssertionError("more was needed than there was")
"""


def test_a_disk_that_is_really_full(tmp_path):
    namespace = ["unshare", "--user", "--map-root-user", "--mount"]
    mount = f"mount -t tmpfs -o size=12m none {tmp_path}"
    if not shutil.which("unshare") or subprocess.run([*namespace, "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this system does not allow mounting a small tmpfs in a namespace of one's own")
    command = [*namespace, "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable, "-c", REAL_DISK, str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
