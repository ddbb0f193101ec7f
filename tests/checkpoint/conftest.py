"""A folder of checkpoints with two whole ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftlab.checkpoint.store import write_checkpoint


def write_files(step: int):
    """Return a writer of three files, one in a subfolder, whose content tells the step."""

    def write(folder: Path) -> None:
        (folder / "weights").mkdir()
        (folder / "weights" / "adapter.bin").write_bytes(bytes(range(256)) + str(step).encode())
        (folder / "optimizer.bin").write_bytes(b"moments %d " % step * 20)
        (folder / "progress.json").write_text(f'{{"step": {step}}}')

    return write


@pytest.fixture
def root(tmp_path) -> Path:
    for step in (10, 20):
        write_checkpoint(tmp_path / "checkpoints", step, write_files(step), {"world_size": 1, "rate": 1e-4})
    return tmp_path / "checkpoints"
