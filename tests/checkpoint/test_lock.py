"""One run at a time in a run directory, whoever starts it and however the former one ended."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from peftlab.checkpoint.lock import RunLock
from peftlab.errors import StorageError
from tests.conftest import REPOSITORY

# Lines are single writes: two processes write to one pipe.
HOLD = """
import os, sys, time
from peftlab.checkpoint.lock import RunLock
with RunLock(sys.argv[1]):
    if len(sys.argv) > 2 and os.fork() == 0:
        os.write(1, b"child %d\\n" % os.getpid())
        time.sleep(60)
    os.write(1, b"held\\n")
    time.sleep(60)
"""


def start_holder(path, *arguments) -> subprocess.Popen:
    command = [sys.executable, "-c", HOLD, str(path), *arguments]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def holder(tmp_path):
    process = start_holder(tmp_path / "lock")
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_run_is_refused_and_names_the_holder(tmp_path, holder):
    with pytest.raises(StorageError) as caught, RunLock(tmp_path / "lock"):
        pass
    told = f"{tmp_path}: is in use by process {holder.pid} on {socket.gethostname()}, started at 20"
    assert str(caught.value).startswith(told) and "\n" not in str(caught.value)


def test_the_lock_of_a_killed_run_is_free_at_once(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert str(holder.pid) in (tmp_path / "lock").read_text(), "it had no time to tidy up"
    with RunLock(tmp_path / "lock"):
        assert str(os.getpid()) in (tmp_path / "lock").read_text()


def test_a_data_worker_that_outlives_its_run_does_not_hold_the_lock(tmp_path):
    process = start_holder(tmp_path / "lock", "with a child")
    lines = sorted(process.stdout.readline() for _ in range(2))
    child = int(lines[0].split()[1])
    try:
        with pytest.raises(StorageError), RunLock(tmp_path / "lock"):
            pass
        process.kill()
        process.wait()
        os.kill(child, 0)
        with RunLock(tmp_path / "lock"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


def test_the_lock_is_free_after_the_context_and_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), RunLock(tmp_path / "lock"):
            raise ZeroDivisionError
    assert (tmp_path / "lock").read_text() == ""


def test_the_same_process_cannot_hold_it_twice(tmp_path):
    with RunLock(tmp_path / "lock"):
        with pytest.raises(StorageError, match=f"process {os.getpid()} "), RunLock(tmp_path / "lock"):
            pass
        with pytest.raises(StorageError), RunLock(tmp_path / "lock"):
            pass


def test_neither_an_old_lock_file_nor_the_clock_says_that_a_run_lives(tmp_path):
    (tmp_path / "lock").write_text(f'{{"pid": {os.getpid()}, "host": "here", "started": "now"}}')
    os.utime(tmp_path / "lock", (time.time() + 1e6,) * 2)
    with RunLock(tmp_path / "lock"):
        pass


def test_a_holder_that_has_not_yet_said_who_it_is_holds_it_all_the_same(tmp_path, holder):
    (tmp_path / "lock").write_text('{"pid"')
    with pytest.raises(StorageError, match="is in use by another process"), RunLock(tmp_path / "lock"):
        pass


def test_a_place_that_cannot_be_locked_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for path in (tmp_path / "absent" / "lock", tmp_path, tmp_path / "link"):
        with pytest.raises(StorageError, match="cannot be locked: "), RunLock(path):
            pass
    assert not (tmp_path / "elsewhere").exists()

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StorageError, match="No locks available; set run.output to a directory on a local disk"):
        RunLock(tmp_path / "lock").__enter__()
