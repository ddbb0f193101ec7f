"""The host memory that is free is that of the container where there is one."""

from __future__ import annotations

import psutil
import pytest
import torch

from peftlab.world import hardware


@pytest.mark.parametrize(("limit", "usage", "free"), [("1000", "400", 600), ("1000", "1200", 0), ("max", "400", None)])
def test_a_container_has_less_free_memory_than_its_machine(tmp_path, monkeypatch, limit, usage, free):
    (tmp_path / "max").write_text(limit + "\n")
    (tmp_path / "current").write_text(usage + "\n")
    groups = ((tmp_path / "absent", tmp_path / "absent"), (tmp_path / "max", tmp_path / "current"))
    monkeypatch.setattr(hardware, "CONTROL_GROUPS", groups)
    found = hardware.free_host_bytes()
    assert found == free if free is not None else found > psutil.virtual_memory().available / 2


def test_what_torchs_allocator_keeps_unused_is_free(monkeypatch):
    """1000 bytes are free on the device; of 300 that the allocator has, tensors use 100."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 9000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    assert hardware.free_bytes(torch.device("cuda")) == 1000 + 300 - 100
