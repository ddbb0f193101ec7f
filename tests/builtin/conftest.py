"""The build scripts of the shipped data as modules, and the shipped rows."""

from __future__ import annotations

from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def scripts(monkeypatch):
    """Put the folder of the build scripts on the import path, where they find each other."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return SCRIPTS
