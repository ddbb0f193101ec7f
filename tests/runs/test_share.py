"""Which CUDA devices a job gets, from what the process may see, without torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftlab.runs import jobs


@pytest.fixture
def files(monkeypatch):
    """Set the devices' files, as a container's that was given the machine's third and sixth."""

    def put(*names: str) -> None:
        monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(self / name for name in names))

    return put


@pytest.mark.parametrize(
    ("visible", "devices"),
    [
        (None, ["0", "1"]),
        ("", []),
        ("5", ["5"]),
        ("3, 1", ["3", "1"]),
        ("-1", []),
        ("0,-1,2", ["0"]),
        ("GPU-8932f937,GPU-1", ["GPU-8932f937", "GPU-1"]),
    ],
)
def test_devices_are_counted_as_cuda_counts_them(monkeypatch, files, visible, devices):
    files("nvidia2", "nvidia5")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert jobs.list_cuda_devices() == devices


def test_jobs_at_once_get_a_device_each_and_none_where_they_are_hidden(monkeypatch, files):
    files("nvidia2", "nvidia5")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [jobs.share_of_machine(place, 2)["CUDA_VISIBLE_DEVICES"] for place in range(3)] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES" not in jobs.share_of_machine(0, 2)
