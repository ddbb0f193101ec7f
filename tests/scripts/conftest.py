"""The modules of the scripts, importable as the scripts themselves import them."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch):
    """Return a function that imports a module of `scripts/`, `scripts/benchmark/` or `scripts/gpu/`."""
    for folder in (SCRIPTS, SCRIPTS / "benchmark", SCRIPTS / "gpu"):
        monkeypatch.syspath_prepend(str(folder))
    return importlib.import_module
