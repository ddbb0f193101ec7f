"""Stored bits by hand, the verdict on made-up capacities, and sizes against the models that are built."""

from __future__ import annotations

import json
from math import log
from pathlib import Path

import pytest

from peftlab.recipe.dump import dump_values
from peftlab.recipe.load import parse_recipe
from peftlab.runs.loading import read_shape
from peftlab.studies.capacity import (
    BITFIT,
    CAPACITY,
    FULL,
    LENGTH,
    SCALES,
    SIZED,
    count_strings,
    measure,
    parts,
    stored_bits,
    write_strings,
)
from peftlab.studies.compared import Arm
from peftlab.studies.study import Setting, conclude

from .invented import around, invent

UNIFORM = log(256)


def test_a_uniform_guess_stores_nothing_and_knowing_all_stores_eight_bits_a_symbol():
    # Ten strings: 63 symbols and an end each. A guess that knows the ends has 63/64 of the loss of a symbol.
    losses = {"guess": [UNIFORM * 63 / 64], "heart": [0.0]}
    compared = invent({"loss": losses}, targets=10 * LENGTH)
    assert stored_bits(compared, "guess") == pytest.approx([0.0], abs=1e-9)
    assert stored_bits(compared, "heart") == [10 * 63 * 8]


def losses_for(bits: float, targets: float, trainable: int, seeds: int = 3) -> list[float]:
    """Return losses of seeds that store about this many bits a parameter."""
    worth = targets / LENGTH * 63 * 8
    return [(worth - each * trainable) * log(2) / targets for each in around(bits, seeds)]


def results(**bits: float):
    """Return results of the size `small` with these bits a parameter by method."""

    def one(labels, trainable):
        targets = count_strings(trainable) * LENGTH
        losses = {label: losses_for(bits[label], targets, trainable) for label in labels}
        return invent({"loss": losses}, {label: Arm(trainable, 10_000) for label in labels}, targets)

    return {
        "trained-2176": one(["lora"], 2176), "trained-4352": one(SIZED, 4352), BITFIT: one([BITFIT], 1152),
        FULL: one([FULL], 9000),
    }  # fmt: skip


def verdict(found):
    expectations = CAPACITY.expectations("small")
    outcomes = {one.name: one.judge(found.quantities[one.name]) for one in expectations}
    return conclude([*outcomes.values()]), outcomes


def test_equal_capacities_do_not_refute_the_claim():
    found = measure(results(lora=2.0, adapters=1.9, prefix=1.8, bitfit=1.7, full=2.2), CAPACITY.confidence("small"))
    assert verdict(found)[0] == "not refuted"
    assert found.quantities["lora"].value == pytest.approx(2.0)
    assert found.quantities["growth"].value == pytest.approx(2.0)
    assert found.quantities["prefix"].value == pytest.approx(0.9, rel=1e-3)


def test_a_method_that_stores_a_fifth_refutes_the_claim():
    found = measure(results(lora=2.0, adapters=1.9, prefix=0.4, bitfit=1.7, full=2.2), CAPACITY.confidence("small"))
    assert verdict(found) == (
        "refuted",
        {"lora": "not refuted", "growth": "not refuted", "adapters": "not refuted", "prefix": "refuted",
         "bitfit": "not refuted", "full": "not refuted"},
    )  # fmt: skip


def test_a_method_at_the_end_of_the_range_leaves_it_undecided():
    found = measure(results(lora=2.0, adapters=1.9, prefix=1.0, bitfit=1.7, full=2.2), CAPACITY.confidence("small"))
    assert verdict(found)[0] == "undecided"


@pytest.mark.parametrize("size", SCALES)
def test_the_strings_are_worth_what_the_model_really_trains(size, tmp_path):
    """The counts from which strings are made are formulas; the shapes of the configs have the true ones."""
    for part in parts(Setting(size, tmp_path)):
        part.prepare(tmp_path)
        for values in part.recipes.values():
            recipe = parse_recipe(dump_values(values))
            count = recipe.method.count_trainable(read_shape(recipe, None))
            rows = len(Path(recipe.data.train).read_text(encoding="utf-8").splitlines())
            if part.name in (BITFIT, FULL):
                assert rows == count_strings(count)


def test_strings_are_the_same_each_time_and_of_one_length(tmp_path):
    for name in ("one", "other"):
        write_strings(tmp_path / name, 5)
    first, second = ((tmp_path / name).read_text() for name in ("one", "other"))
    assert first == second
    rows = [json.loads(line)["text"].split() for line in first.splitlines()]
    assert [len(row) for row in rows] == [LENGTH] * 5
    assert len({tuple(row) for row in rows}) == 5
