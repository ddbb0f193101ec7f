"""A strategy is one class in one file and one entry: a run trains with it, and nothing else knows of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from peftlab.errors import StoppedError
from peftlab.recipe.schema import Recipe
from peftlab.reports import RunResult
from peftlab.runs.directory import RunDirectory
from peftlab.runs.display import NoDisplay
from peftlab.runs.run import train
from peftlab.world.base import Item, World
from peftlab.world.open import STRATEGIES
from tests.runs.recipes import shallow_recipe


class Averaged(World):
    """Averages each gradient over four processes, of which the other three contribute nothing.

    Powers of two, so that factor and average cancel without rounding. It trains new parameters in place of the
    model's, as strategies that divide weights do. `calls` counts what the run asked for.
    """

    strategy = "fsdp2"
    gradient_factor = 4.0
    sharing = 1
    calls: Counter[str] = Counter()

    def prepare(self, model: nn.Module) -> nn.Module:
        self.calls["prepare"] += 1
        for module in model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if parameter.requires_grad:
                    new = nn.Parameter(parameter.detach().clone())
                    new.register_hook(lambda gradient: gradient / 4)
                    setattr(module, name, new)
        return Wrapped(model)

    def capture(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        assert isinstance(model, Wrapped), "the model that `prepare` returned"
        self.calls["capture"] += 1
        return super().capture(model, optimizer)

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        assert isinstance(model, Wrapped), "the model that `prepare` returned"
        self.calls["restore"] += 1
        super().restore(model, optimizer, state)

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


@pytest.fixture
def toy(monkeypatch):
    """Start runs with the strategy `Averaged`, as if accelerate's launcher had asked for it."""
    monkeypatch.setitem(STRATEGIES, Averaged.strategy, Averaged)
    Averaged.calls.clear()

    def start(recipe: Recipe, resume: bool = False) -> RunResult:
        with monkeypatch.context() as context:
            # Without the settings that accelerate would act on itself.
            context.setenv("PARALLELISM_CONFIG_DP_SHARD_SIZE", "2")
            return train(recipe, resume=resume, display=NoDisplay())

    return start


def test_a_run_trains_with_a_strategy_of_one_class_and_one_entry(tmp_path, toy):
    """Oracle: the same recipe in one process alone, to the last bit."""
    recipes = [shallow_recipe("lora", tmp_path / name, steps=2, gradient_accumulation=2) for name in ("single", "toy")]
    single = train(recipes[0], display=NoDisplay())
    result = toy(recipes[1])
    assert (single.environment["strategy"], result.environment["strategy"]) == ("single", "fsdp2")
    assert result.status == "finished" and result.metrics == single.metrics
    expected, found = weights_of(tmp_path / "single"), weights_of(tmp_path / "toy")
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)
    # The trial's two steps and training's two have two micro-batches each, of which the last one exchanges.
    assert Averaged.calls["prepare"] == 1 and Averaged.calls["accumulating"] == 4 and Averaged.calls["wait"] >= 2


def test_a_strategy_writes_and_reads_the_state_of_a_run(tmp_path, toy):
    """Oracle: a straight run in one process alone, to the last bit."""
    train(shallow_recipe("lora", tmp_path / "single", steps=3), display=NoDisplay())
    recipe = shallow_recipe("lora", tmp_path / "toy", steps=3)
    with pytest.raises(StoppedError):
        toy(recipe.model_copy(update={"run": recipe.run.model_copy(update={"stop_after": 2})}))
    assert toy(recipe, resume=True).resumes[0].exact
    expected, found = weights_of(tmp_path / "single"), weights_of(tmp_path / "toy")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert Averaged.calls["capture"] >= 1 and Averaged.calls["restore"] == 1
