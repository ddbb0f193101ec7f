"""The host memory that is free is that of the container where there is one."""

from __future__ import annotations

import psutil
import pytest

from peftlab.world import hardware


@pytest.mark.parametrize(("limit", "usage", "free"), [("1000", "400", 600), ("1000", "1200", 0), ("max", "400", None)])
def test_a_container_has_less_free_memory_than_its_machine(tmp_path, monkeypatch, limit, usage, free):
    (tmp_path / "max").write_text(limit + "\n")
    (tmp_path / "current").write_text(usage + "\n")
    groups = ((tmp_path / "absent", tmp_path / "absent"), (tmp_path / "max", tmp_path / "current"))
    monkeypatch.setattr(hardware, "CONTROL_GROUPS", groups)
    found = hardware.free_host_bytes()
    assert found == free if free is not None else found > psutil.virtual_memory().available / 2
