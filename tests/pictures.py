"""A picture that runs of tests write in place of their loss curve, since to draw one takes a tenth of a short run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from peftlab.files import write_atomically


def picture() -> bytes:
    from matplotlib.figure import Figure

    content = io.BytesIO()
    Figure(figsize=(0.1, 0.1)).savefig(content, dpi=10, format="png")
    return content.getvalue()


@pytest.fixture(scope="module", autouse=True)
def one_picture():
    """Write one picture for every run of this process; curves are drawn in `faults`, in `cli` and by processes."""
    content = picture()

    def write(history: list[dict[str, Any]], title: str, path: Path) -> None:
        if history:
            write_atomically(path, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("peftlab.runs.save.draw_losses", write)
        yield
