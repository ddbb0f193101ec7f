"""The verdicts of the studies that compare runs, on made-up runs: refuted, not refuted, undecided."""

from __future__ import annotations

from math import inf, log

import pytest

from peftlab.studies.batch_size import SCALES as BATCHES
from peftlab.studies.batch_size import label_of as batch_label
from peftlab.studies.compared import FORGETTING as FORGOTTEN
from peftlab.studies.compared import Arm
from peftlab.studies.e2e_ordering import FILES, METHODS, missing
from peftlab.studies.learning_rate_ratio import SCALES, best_learning_rate, label_of, name_of
from peftlab.studies.registry import STUDIES
from peftlab.studies.study import Setting, conclude

from .invented import around, invent


def judged(name, **results):
    """Return the verdict of a study and the outcome of each expectation."""
    study = STUDIES[name]
    found = study.measure(results, study.confidence("small"))
    outcomes = {one.name: one.judge(found.quantities.get(one.name)) for one in study.expectations("small")}
    return conclude([*outcomes.values()]), outcomes


def test_the_best_learning_rate_is_where_a_parabola_is_least():
    rates = [1e-4, 1e-3, 1e-2]
    losses = [(log(rate) - log(2e-3)) ** 2 + 1 for rate in rates]
    assert best_learning_rate(rates, losses) == pytest.approx(2e-3)


def test_a_best_learning_rate_at_an_end_or_beside_a_diverged_run_is_not_known():
    rates = [1e-4, 1e-3, 1e-2]
    assert best_learning_rate(rates, [1.0, 2.0, 3.0]) is None
    assert best_learning_rate(rates, [3.0, 2.0, 1.0]) is None
    assert best_learning_rate(rates, [3.0, 1.0, inf]) is None


def swept(**best):
    """Return runs whose loss is a parabola with its least value at each arm's best learning rate."""
    scale = SCALES["small"]
    losses = {}
    for arm, least in best.items():
        for rate in scale.full if arm == "full" else scale.lora:
            name = arm if arm == "full" else name_of(int(arm.removeprefix("rank")))
            value = (log(rate) - log(least)) ** 2 / 10 + 3
            losses[label_of(name, rate)] = [value, value + 0.001, value - 0.001, value]
    return invent({"loss": losses})


@pytest.mark.parametrize(
    ("best", "verdict"),
    [
        ({"full": 1e-3, "rank1": 1e-2, "rank4": 1e-2, "rank16": 1e-2}, "not refuted"),
        ({"full": 1e-3, "rank1": 1e-2, "rank4": 1e-2, "rank16": 2.9e-3}, "refuted"),
        ({"full": 1e-3, "rank1": 3e-2, "rank4": 1e-2, "rank16": 1e-2}, "refuted"),
        ({"full": 1e-3, "rank1": 1e-2, "rank4": 1e-2, "rank16": 1.0}, "undecided"),
    ],
)
def test_learning_rate_ratio(best, verdict):
    assert judged("learning-rate-ratio", **{"learning-rates": swept(**best)})[0] == verdict


@pytest.mark.parametrize(("attention", "verdict"), [(3.1, "not refuted"), (2.8, "refuted"), (3.005, "undecided")])
def test_layers(attention, verdict):
    losses = {"all": around(3.0), "mlp": around(3.0), "attention": around(attention)}
    assert judged("layers", targets=invent({"loss": losses}))[0] == verdict


@pytest.mark.parametrize(("lora", "verdict"), [(3.6, "not refuted"), (3.2, "refuted"), (3.4, "undecided")])
def test_batch_size_compares_the_gaps_and_not_the_losses(lora, verdict):
    """Full is .2 worse with large batches; LoRA is .1 above it with small ones, so 3.4 would be the same gap."""
    small, large, *_ = BATCHES["small"]
    losses = {
        batch_label("full", small): around(3.1), batch_label("lora", small): around(3.2),
        batch_label("full", large): around(3.3), batch_label("lora", large): around(lora),
    }  # fmt: skip
    assert judged("batch-size", batches=invent({"loss": losses}))[0] == verdict


@pytest.mark.parametrize(
    ("learned", "forgotten", "verdict"),
    [(3.2, 0.1, "not refuted"), (2.9, 0.1, "refuted"), (3.2, 0.9, "refuted"), (3.2, 0.5, "undecided")],
)
def test_forgetting(learned, forgotten, verdict):
    others = {name: around(0.1) for name in ("adapters", "prefix", "bitfit")}
    compared = invent({
        "loss": {"full": around(3.0), "lora": around(learned), **{name: around(3.3) for name in others}},
        FORGOTTEN: {"full": around(0.5), "lora": around(forgotten), **others},
    })  # fmt: skip
    assert judged("forgetting", methods=compared)[0] == verdict


@pytest.mark.parametrize(("full", "verdict"), [(60, "not refuted"), (75, "refuted"), (70, "undecided")])
def test_e2e_ordering(full, verdict):
    values = {name: around(full if name == "full" else 70 if name == "lora" else 65) for name in METHODS}
    found, outcomes = judged("e2e-ordering", methods=invent({"bleu": values, "loss": values}))
    assert found == verdict
    assert outcomes["adapters"] == "not refuted"


@pytest.mark.parametrize(
    ("edge", "full", "verdict"),
    [("full", 60, "undecided"), ("full", 75, "refuted"), ("lora", 60, "not refuted"), ("lora", 75, "undecided")],
)
def test_a_variant_that_might_do_better_beyond_its_learning_rates_decides_only_what_that_would_confirm(
    edge, full, verdict
):
    values = {name: around(full if name == "full" else 70 if name == "lora" else 65) for name in METHODS}
    arms = {name: Arm(at_edge=name == edge) for name in METHODS}
    found, outcomes = judged("e2e-ordering", methods=invent({"bleu": values, "loss": values}, arms))
    assert outcomes["full"] == verdict and found == verdict


def test_a_lower_loss_may_be_beyond_and_forgetting_may_move_either_way():
    values = {"full": around(3.0), "lora": around(3.2)}
    compared = invent({"loss": values, FORGOTTEN: values}, {"full": Arm(at_edge=True), "lora": Arm()})
    of_loss, of_other = (compared.difference(name, "full", "lora", 0.95) for name in ("loss", FORGOTTEN))
    assert of_loss.low == of_other.low == -inf and of_other.high == inf
    assert of_loss.value == pytest.approx(-0.2) and -0.2 < of_loss.high < 0
    of_loss = compared.difference("loss", "lora", "full", 0.95)
    assert 0 < of_loss.low < 0.2 and of_loss.high == inf


def test_a_study_of_data_that_are_not_here_says_what_it_needs(tmp_path):
    assert "github.com/tuetschek/e2e-dataset" in missing(Setting("small", tmp_path))
    assert "e2e_dev.csv" in missing(Setting("small", tmp_path, tmp_path))
    for names in FILES.values():
        (tmp_path / names[1]).write_text("mr,ref\n")
    assert missing(Setting("small", tmp_path, tmp_path)) is None


def test_a_comparison_that_lost_a_variant_is_undecided():
    assert judged("layers", targets=invent({"loss": {"all": around(3.0), "attention": around(3.2)}})) == (
        "undecided", {"all": "not refuted", "mlp": "undecided"}
    )  # fmt: skip
