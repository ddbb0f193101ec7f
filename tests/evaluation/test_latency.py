"""Passes are timed in turns, so that what else the machine does falls on all models."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from peftlab.evaluation import latency
from peftlab.evaluation.latency import is_settled, latency_batch, measure_latency, relative_to

CPU = torch.device("cpu")


class Sleeper(nn.Module):
    """Sleeps so many milliseconds a pass and writes down who passed, in which mode."""

    def __init__(self, name: str, milliseconds: float, log: list):
        super().__init__()
        self.name, self.milliseconds, self.log = name, milliseconds, log

    def forward(self, input_ids, attention_mask):
        self.log.append((self.name, self.training, torch.is_grad_enabled()))
        time.sleep(self.milliseconds / 1000)


@pytest.fixture
def few_rounds(monkeypatch):
    monkeypatch.setattr(latency, "ROUNDS", 6)
    monkeypatch.setattr(latency, "LEAST_ROUNDS", 2)
    monkeypatch.setattr(latency, "WARM_UP_ROUNDS", 1)


def measure(log, milliseconds=(5, 25)):
    models = {name: Sleeper(name, ms, log) for name, ms in zip("ab", milliseconds, strict=True)}
    models["b"].train()
    seconds = measure_latency(models, latency_batch(1, 4, 9, CPU), device=CPU)
    assert models["b"].training
    return seconds


def test_models_take_turns_and_another_one_is_first_each_round(few_rounds):
    log = []
    seconds = measure(log)
    assert [name for name, _, _ in log] == list("ab" + "abba" * 3)
    assert all((training, gradient) == (False, False) for _, training, gradient in log)
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 6, "b": 6}
    assert relative_to(seconds["a"], seconds["b"]) > 1.5


def test_slow_models_get_fewer_rounds_but_some(few_rounds, monkeypatch):
    monkeypatch.setattr(latency, "LONGEST_SECONDS", 0.0)
    assert len(measure([])["a"]) == 2


def test_models_whose_ratio_is_known_get_no_more_rounds(monkeypatch):
    turns = iter(range(10_000))

    def steady(model, batch, device):
        return model.milliseconds * (1 + next(turns) // 2 % 3)  # a slow round falls on both

    monkeypatch.setattr(latency, "time_pass", steady)
    assert len(measure([])["a"]) == latency.LEAST_ROUNDS


def test_a_ratio_is_settled_by_the_order_of_its_rounds_alone():
    # 40 rounds: ranks 13 to 27 of 0 to 39 bound the median of 20 at 95 % (binomial: 13.8 and 26.2).
    def found(width: float) -> list[float]:
        return [0.1] * 13 + [1.0 + width * place / 14 for place in range(15)] + [9.0] * 12

    assert is_settled([1.0] * 40, [found(0.039)])
    assert not is_settled([1.0] * 40, [found(0.042)]) and not is_settled([1.0] * 40, [found(0.0), found(0.042)])
    assert not is_settled([1.0] * 3, [[1.0] * 3])


def test_a_slow_round_falls_on_both():
    assert relative_to([1.0, 5.0, 1.0, 9.0, 1.0], [2.0, 10.0, 2.0, 18.0, 2.0]) == 2.0


def test_the_batch_is_always_the_same_and_within_the_vocabulary():
    batch = latency_batch(2, 50, 7, CPU)
    assert batch["input_ids"].shape == (2, 50) and set(batch["input_ids"].flatten().tolist()) == set(range(7))
    assert torch.equal(batch["input_ids"], latency_batch(2, 50, 7, CPU)["input_ids"])
