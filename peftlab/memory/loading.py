"""What loading a base takes: all of it in one process, or this process's rows where processes divide it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peftlab.memory.private import BLOCK
from peftlab.memory.strategies import Weight
from peftlab.models.quantize import dense_names
from peftlab.models.reference import resolve
from peftlab.recipe.schema import Model
from peftlab.shapes import ModelShape


@dataclass(frozen=True)
class Packing:
    """A dense weight that is quantised: itself, what exists beside it meanwhile, its packed bytes and their scales."""

    dense: Weight
    passing: int
    packed: int
    scales: int

    @property
    def made(self) -> int:
        return self.packed + self.scales


@dataclass(frozen=True)
class LoadBytes:
    """Bytes of the plain model as read, what drawing it takes more, its parameters, and what is quantised.

    `drawn` says that its weights are random, `sent` that one process reads whole tensors for all.
    """

    plain: int
    to_tie: int
    weights: tuple[Weight, ...]
    packings: tuple[Packing, ...]
    drawn: bool = False
    sent: bool = False

    @property
    def made(self) -> int:
        """The most that exists until the plain model does."""
        return self.plain + self.to_tie

    @property
    def largest(self) -> int:
        """The largest weight that is quantised."""
        return max((one.dense.whole for one in self.packings), default=0)

    @property
    def in_place(self) -> int:
        """The peak of reading the model and of quantising it, one dense weight after the other."""
        present, highest = self.plain, self.made
        for one in self.packings:
            highest = max(highest, present + one.passing + one.made)
            present += one.made - one.dense.whole
        return highest

    def divided(self, devices: int) -> int:
        """Return the peak on each device that keeps its rows; random weights are all of them at first.

        A dense weight is gathered, quantised whole, and cut; the scales remain whole.
        """
        present = self.plain - sum(one.whole - one.part(devices) for one in self.weights)
        sent = (one.whole + one.part(devices) for one in self.weights if self.sent)
        highest = max(present, self.made if self.drawn else 0, *sent)
        for one in self.packings:
            gathered = devices * one.dense.part(devices)
            highest = max(highest, present + gathered + one.passing + one.made)
            present += -(-one.packed // devices) + one.scales - one.dense.part(devices)
        return highest


def find_load_bytes(model: PreTrainedModel, shape: ModelShape, section: Model, base_format: str) -> LoadBytes:
    """Return what loading a model takes, which is on the meta device, for the format that its base is kept in."""
    drawn, sent = section.init == "random", resolve(section.name, section.revision).kind == "gguf"
    plain = sum(p.numel() * p.itemsize for p in (*model.parameters(), *model.buffers()))
    weights = tuple(_as_weight(p) for p in model.parameters() if p.dim())
    packings = tuple(_packings(model, shape, base_format)) if base_format != "plain" else ()
    return LoadBytes(plain, _bytes_to_tie(model) if drawn else 0, weights, packings, drawn, sent and not drawn)


def _packings(model: PreTrainedModel, shape: ModelShape, base_format: str) -> Iterator[Packing]:
    names = set(dense_names(model))
    for site in (one for one in shape.linears if one.name in names):
        weight = model.get_submodule(site.name).get_parameter("weight")
        count = site.n_in * site.n_out
        # GPT-2's dense layers are transposed, and what becomes int8 is float16 first: both need a copy.
        passing = weight.nbytes if isinstance(model.get_submodule(site.name), Conv1D) else 0
        if base_format == "int8":
            yield Packing(_as_weight(weight), passing + 2 * count, count, 4 * site.n_out)
        else:  # the scales are in float32 when they are made, even if they are quantised later
            yield Packing(_as_weight(weight), passing, count // 2, 4 * (count // BLOCK))


def _as_weight(parameter: nn.Parameter) -> Weight:
    return Weight(len(parameter), parameter.nbytes // max(len(parameter), 1), trains=False)


def _bytes_to_tie(model: nn.Module) -> int:
    """Return the bytes of weights that modules draw for themselves before they are tied to those of others."""
    own = [p for module in model.modules() for p in module.parameters(recurse=False)]
    distinct = {id(p): p for p in own}.values()
    return sum(p.numel() * p.itemsize for p in own) - sum(p.numel() * p.itemsize for p in distinct)
