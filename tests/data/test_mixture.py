"""Mixtures: sources are drawn as `datasets.interleave_datasets` draws them, and every row of a source comes in turn."""

from __future__ import annotations

from collections import Counter

import datasets
import pytest

from peftlab.data.dataset import load_data
from peftlab.data.orders import BLOCKS_KEPT, DRAWS_AT_ONCE, Mixed, Mixture, SourceDraws
from peftlab.errors import DataError
from peftlab.recipe.schema import Data
from peftlab.tasks import TASKS

SIZES, WEIGHTS = (30, 7, 50), (5.0, 1.0, 2.0)


def interleaved(sizes, weights, seed, strategy):
    """Return the sources, row by row, that the library interleaves."""
    parts = [datasets.Dataset.from_dict({"source": [number] * size}) for number, size in enumerate(sizes)]
    shares = [weight / sum(weights) for weight in weights]
    return datasets.interleave_datasets(parts, shares, seed=seed, stopping_strategy=strategy)["source"]


def source_of(row, sizes=SIZES):
    return next(number for number in range(len(sizes)) if row < sum(sizes[: number + 1]))


@pytest.mark.parametrize("strategy", ["first_exhausted", "all_exhausted"])
@pytest.mark.parametrize("seed", [0, 3])
def test_sources_and_the_length_of_an_epoch_are_those_of_interleave_datasets(seed, strategy):
    expected = list(interleaved(SIZES, WEIGHTS, seed, strategy))
    order = Mixed(seed, SIZES, WEIGHTS, strategy == "all_exhausted")
    assert order.epoch_rows == len(expected)
    assert [source_of(order.row(position)) for position in range(len(expected))] == expected


def test_each_source_gives_every_row_before_any_row_again_in_another_order():
    order = Mixed(1, SIZES, WEIGHTS)
    rows = [order.row(position) for position in range(3000)]
    for number, size in enumerate(SIZES):
        own = [row for row in rows if source_of(row) == number]
        epochs = [own[first : first + size] for first in range(0, len(own) - size, size)]
        assert len(epochs) > 2 and all(len(set(epoch)) == size for epoch in epochs)
        assert epochs[0] != epochs[1]
    shares = [count / len(rows) for _, count in sorted(Counter(map(source_of, rows)).items())]
    assert shares == pytest.approx([5 / 8, 1 / 8, 2 / 8], abs=0.03)


def test_a_position_needs_no_history():
    far = DRAWS_AT_ONCE * (BLOCKS_KEPT + 5) + 17
    draws = SourceDraws(WEIGHTS, 2)
    first = [draws.draw(position) for position in range(20)]
    there = draws.draw(far)
    assert [draws.draw(position) for position in range(20)] == first
    assert SourceDraws(WEIGHTS, 2).draw(far) == there


def test_a_mixture_says_the_share_and_rows_of_each_source():
    described = Mixture(("a", "b"), (3, 4), (3.0, 1.0)).describe()
    assert described == [{"source": "a", "share": 0.75, "rows": 3}, {"source": "b", "share": 0.25, "rows": 4}]


def write(path, prefix, rows, text="word"):
    path.write_text("text\n" + "".join(f"{prefix} {text * (n % 3 + 1)} {n}\n" for n in range(rows)))
    return str(path)


def section(tmp_path, *weights, **fields):
    sources = [write(tmp_path / f"{n}.csv", f"s{n}", 20 + n) for n in range(len(weights))]
    train = [{"source": name, "weight": weight} for name, weight in zip(sources, weights, strict=True)]
    return Data.model_validate({"train": train, **fields})


def test_held_out_rows_of_a_mixture_are_never_trained_on(tmp_path, bpe):
    dataset = load_data(section(tmp_path, 3, 1, evaluation=0.25), bpe, TASKS["causal-lm"], 0)
    assert dataset.mixture.sizes[0] + dataset.mixture.sizes[1] == len(dataset.train) == 41 - len(dataset.evaluation)
    texts = [{bpe.decode(row.input_ids) for row in part} for part in (dataset.train, dataset.evaluation)]
    assert not texts[0] & texts[1]
    order = dataset.order(0)
    for position in range(order.epoch_rows):
        row = order.row(position)
        own = bpe.decode(dataset.train[row].input_ids, skip_special_tokens=True)[:2]
        assert own == f"s{source_of(row, dataset.mixture.sizes)}"
    assert dataset.report["mixture"][0]["share"] == 0.75


def test_a_source_that_gives_no_training_row_is_refused_by_its_name(tmp_path, bpe):
    data = section(tmp_path, 1, 1)
    (tmp_path / "1.csv").write_text("text\n" + "x\n")
    data = data.model_copy(update={"train_rows": 1})
    with pytest.raises(DataError, match=r"\.csv: gives no training row, so none can be drawn by its weight"):
        load_data(data, bpe, TASKS["causal-lm"], 0)
