"""How threads wait for each other: decided before torch is loaded, and left alone where the user has said it."""

from __future__ import annotations

import os
import sys

import pytest

from peftlab.__main__ import main


@pytest.fixture
def seen(monkeypatch):
    """The variables that a command finds, none of which was set before."""
    found: dict[str, str | None] = {}

    def run(arguments: list[str]) -> int:
        found.update({name: os.environ.get(name) for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")})
        return 0

    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.setenv(name, "")  # so that what main sets is removed after the test
        monkeypatch.delenv(name)
    monkeypatch.setattr("peftlab.cli.app.run", run)
    monkeypatch.setattr(sys, "argv", ["peftlab", "doctor"])
    return found


def test_waiting_threads_spin_for_a_moment_only(seen):
    with pytest.raises(SystemExit):
        main()
    assert seen == {"OMP_WAIT_POLICY": None, "GOMP_SPINCOUNT": "10000"}


@pytest.mark.parametrize(("name", "value"), [("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "1000")])
def test_what_the_user_says_of_waiting_threads_is_kept(seen, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        main()
    assert seen == {"OMP_WAIT_POLICY": None, "GOMP_SPINCOUNT": None, name: value}
