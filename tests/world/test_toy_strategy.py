"""A strategy is one class in one file and one entry: a run trains with it, and nothing else knows of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from safetensors.torch import load_file
from torch import nn

from peftlab.runs.directory import RunDirectory
from peftlab.runs.display import NoDisplay
from peftlab.runs.run import train
from peftlab.world.base import Item, World
from peftlab.world.open import STRATEGIES
from tests.runs.recipes import shallow_recipe


class Averaged(World):
    """Averages each gradient over four processes, of which the other three contribute nothing.

    Powers of two, so that factor and average cancel without rounding. `calls` counts what the run asked for.
    """

    strategy = "fsdp2"
    gradient_factor = 4.0
    sharing = 1
    calls: Counter[str] = Counter()

    def prepare(self, model: nn.Module) -> nn.Module:
        self.calls["prepare"] += 1
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_hook(lambda gradient: gradient / 4)
        return Wrapped(model)

    def accumulating(self, model: nn.Module) -> AbstractContextManager[None]:
        assert isinstance(model, Wrapped), "the model that `prepare` returned"
        return self.count_accumulation()

    @contextmanager
    def count_accumulation(self) -> Iterator[None]:
        self.calls["accumulating"] += 1
        yield

    def gather(self, items: list[Item]) -> list[Item]:
        return list(items)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def wait(self) -> None:
        self.calls["wait"] += 1


class Wrapped(nn.Module):
    """What strategies put around a model."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, *arguments, **named):
        return self.module(*arguments, **named)


def weights_of(folder) -> dict[str, torch.Tensor]:
    (path,) = RunDirectory(folder).weights.glob("adapter*.safetensors")
    return load_file(path)


def test_a_run_trains_with_a_strategy_of_one_class_and_one_entry(tmp_path, monkeypatch):
    """Oracle: the same recipe in one process alone, to the last bit."""
    recipes = [shallow_recipe("lora", tmp_path / name, steps=2, gradient_accumulation=2) for name in ("single", "toy")]
    single = train(recipes[0], display=NoDisplay())
    monkeypatch.setitem(STRATEGIES, Averaged.strategy, Averaged)
    # How accelerate's launcher asks for this strategy, without the settings that accelerate would act on itself.
    monkeypatch.setenv("PARALLELISM_CONFIG_DP_SHARD_SIZE", "2")
    Averaged.calls.clear()
    toy = train(recipes[1], display=NoDisplay())
    assert (single.environment["strategy"], toy.environment["strategy"]) == ("single", "fsdp2")
    assert toy.status == "finished" and toy.metrics == single.metrics
    expected, found = weights_of(tmp_path / "single"), weights_of(tmp_path / "toy")
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)
    # The trial's two steps and training's two have two micro-batches each, of which the last one exchanges.
    assert Averaged.calls["prepare"] == 1 and Averaged.calls["accumulating"] == 4 and Averaged.calls["wait"] >= 2
