"""What is read of a comparison's folder agrees with its report."""

from __future__ import annotations

import pytest

from peftlab.comparison.findings import find
from peftlab.comparison.rows import read_table
from peftlab.studies.compared import FORGETTING, read_compared

from ..comparison.folders import TRAINABLE, Maker


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    Maker(folder, methods=("full", "lora"), rows=60).write()
    return folder


def test_a_difference_and_its_interval_are_those_of_the_report(folder):
    (family,) = find(read_table(folder)).families
    found, pair = read_compared(folder).difference("loss", "full", "lora", 0.95), family.between("full", "lora")
    assert (found.value, found.low, found.high) == pytest.approx((pair.value, pair.low, pair.high))


def test_a_mean_and_forgetting_are_those_of_the_report(folder):
    findings, compared = find(read_table(folder)), read_compared(folder)
    for metric, reported in (("loss", findings.quality["loss"]), (FORGETTING, findings.general_change)):
        for label in ("full", "lora"):
            found, one = compared.mean(metric, label), reported[label]
            assert (found.value, found.low, found.high) == pytest.approx((one.mean, one.low, one.high))


def test_costs_are_read_and_nothing_failed(folder):
    compared = read_compared(folder)
    assert {label: arm.trainable for label, arm in compared.arms.items()} == {
        name: TRAINABLE[name] for name in ("full", "lora")
    }
    assert (
        compared.failures == [] and compared.notes == ["invented numbers"] and len(compared.values("loss", "lora")) == 3
    )


def test_a_failed_run_is_named(tmp_path):
    Maker(tmp_path, methods=("full", "lora"), rows=20, failed=("lora",)).write()
    compared = read_compared(tmp_path)
    assert compared.mean("loss", "lora") is None
    assert compared.failures and all(line.startswith("lora: ") for line in compared.failures)
