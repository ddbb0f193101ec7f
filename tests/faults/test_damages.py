"""A few damages by chance; scripts/damage_test makes hundreds."""

from __future__ import annotations

from .damages import damage_runs


def test_every_damage_is_noticed_by_every_command_that_reads_the_file(tmp_path):
    figures = damage_runs(tmp_path, bits=40, records=40)
    assert figures.missed == figures.faults == []
    assert figures.bits == figures.records == 40 and len(figures.noticed) == 4
