"""How the suite is spread over parallel workers."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import GROUPS


def test_every_file_of_a_group_is_there_and_in_one_group_only():
    files = [file for files in GROUPS.values() for file in files]
    assert len(files) == len(set(files))
    assert [file for file in files if not (Path(__file__).parent / file).is_file()] == []
