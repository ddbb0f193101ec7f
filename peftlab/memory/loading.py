"""What loading a base takes: all of it in one process, or this process's rows where processes divide it.

A checkpoint is read tensor by tensor (`peftlab/models/dividing.py`), and a dense weight is packed when it is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.core_model_loading import dot_natural_key
from transformers.pytorch_utils import Conv1D

from peftlab.memory.private import CODES, SCALE_CODES
from peftlab.memory.strategies import Weight
from peftlab.methods import Method
from peftlab.models.config import read_config
from peftlab.models.quantize import dense_names
from peftlab.models.quantizer import BLOCK, SCALE_BLOCK
from peftlab.models.reference import resolve
from peftlab.recipe.schema import Model
from peftlab.shapes import ModelShape

FLOAT_BYTES = 4
# The numbers that the 4-bit codes stand for: each packed weight has its own.
CODE_BYTES = FLOAT_BYTES * CODES


@dataclass(frozen=True)
class Packing:
    """How a dense weight is packed: what exists beside it meanwhile, its packed bytes and their scales.

    Scales are in float32 when made, with `beside` more meanwhile; `kept` is what remains of them. `numbers` are
    those of a row where a process can pack its rows alone, 0 where it cannot.
    """

    passing: int
    packed: int
    scales: int
    beside: int
    kept: int
    numbers: int = 0

    def takes_rows(self, rows: int, devices: int) -> bool:
        return self.numbers > 0 and rows % devices == 0 and rows // devices * self.numbers % BLOCK == 0


@dataclass(frozen=True)
class Read:
    """A weight of the checkpoint, and how it is packed, if it is.

    `stored` is its size in the file's type, where that is another one, for each byte that is loaded.
    """

    weight: Weight
    packing: Packing | None = None
    stored: float = 0.0

    def alone(self) -> tuple[int, int]:
        """Return what the weight takes while it is read in one process, and what remains of it."""
        read = int(self.weight.whole * (1 + self.stored))
        if self.packing is None:
            return read, self.weight.whole
        made = self.packing.packed + self.packing.scales + self.packing.beside
        return max(read, self.weight.whole + self.packing.passing + made), self.packing.packed + self.packing.kept

    def divided(self, devices: int, sent: bool) -> tuple[int, int]:
        """Return the same of a process that keeps its part. `sent` says that it gets all of each weight for it."""
        part, packing = self.weight.part(devices), self.packing
        read = part + (self.weight.whole if sent else int(part * self.stored))
        if packing is None:
            return read, part
        packed = -(-packing.packed // devices)
        if packing.takes_rows(self.weight.rows, devices):
            made = packed + packing.scales // devices + CODE_BYTES
            return max(part + made + (self.weight.whole if sent else 0), read), made
        whole, kept = self.alone()
        return max(whole, self.weight.whole + kept + packed), packed + packing.kept

    def joined(self, devices: int) -> tuple[int, int]:
        """Return what joining the scales of processes takes, and by how much more remains then; 0 where nothing is."""
        packing = self.packing
        if packing is None or not packing.takes_rows(self.weight.rows, devices):
            return 0, 0
        # The parts, all of them in one tensor, and what quantising them takes.
        return 2 * packing.scales + packing.beside, packing.kept - packing.scales // devices - CODE_BYTES


@dataclass(frozen=True)
class LoadBytes:
    """Bytes of the plain model, what drawing it takes more, its buffers, and its weights in the order of reading.

    `drawn` says that its weights are random, `sent` that one process reads whole tensors for all.
    """

    plain: int
    to_tie: int
    buffers: int
    reads: tuple[Read, ...]
    drawn: bool = False
    sent: bool = False

    @property
    def made(self) -> int:
        """The most that exists until the plain model does."""
        return self.plain + self.to_tie

    @property
    def largest(self) -> int:
        """The largest weight that is packed."""
        return max((one.weight.whole for one in self.reads if one.packing), default=0)

    @property
    def in_place(self) -> int:
        """The peak in one process: all is drawn before anything is packed, and else packed when it is read."""
        if self.drawn:
            return max(self.made, _peak(self.plain, (_repacked(one, *one.alone()) for one in self.reads)))
        return _peak(self.buffers, (one.alone() for one in self.reads))

    def divided(self, devices: int) -> int:
        """Return the peak on each device that keeps its part; random weights are all of them at first."""
        parts = [one.divided(devices, self.sent) for one in self.reads]
        if self.drawn:
            present = self.buffers + sum(one.weight.part(devices) for one in self.reads)
            gathered = (_gathered(one, devices) for one in self.reads)
            return max(self.made, _peak(present, gathered))
        present = self.buffers + sum(kept for _, kept in parts)
        return max(_peak(self.buffers, parts), _peak(present, (one.joined(devices) for one in self.reads)))


def _peak(present: int, changes: Iterator[tuple[int, int]] | list[tuple[int, int]]) -> int:
    """Return the highest of what is present when each change takes some bytes and leaves some."""
    highest = present
    for passing, kept in changes:
        highest = max(highest, present + passing)
        present += kept
    return max(highest, present)


def _repacked(one: Read, passing: int, kept: int) -> tuple[int, int]:
    """Return the change where the plain weight is present already."""
    return (0, 0) if one.packing is None else (passing - one.weight.whole, kept - one.weight.whole)


def _gathered(one: Read, devices: int) -> tuple[int, int]:
    """Return the change where each process has its rows already: they are gathered, packed whole, and cut."""
    if one.packing is None:
        return 0, 0
    part, (whole, _) = one.weight.part(devices), one.alone()
    kept = -(-one.packing.packed // devices) + one.packing.kept
    return whole - one.weight.whole + devices * part, kept - part


def find_load_bytes(model: PreTrainedModel, shape: ModelShape, section: Model, method: Method) -> LoadBytes:
    """Return what loading a model takes, which is on the meta device, for the form in which a method keeps its base."""
    drawn, sent = section.init == "random", resolve(section.name, section.revision).kind == "gguf"
    buffers = sum(one.nbytes for one in model.buffers())
    packings = dict(_packings(model, shape, method)) if method.base_format != "plain" else {}
    named = sorted(model.named_parameters(), key=lambda one: dot_natural_key(one[0]))
    stored = 0 if drawn or sent else _stored_bytes(section)
    reads = tuple(
        Read(_as_weight(p), packings.get(name), 0.0 if stored == p.itemsize else stored / p.itemsize)
        for name, p in named
    )
    plain = buffers + sum(one.weight.whole for one in reads)
    return LoadBytes(plain, _bytes_to_tie(model) if drawn else 0, buffers, reads, drawn, sent and not drawn)


def _packings(model: PreTrainedModel, shape: ModelShape, method: Method) -> Iterator[tuple[str, Packing]]:
    names, storage = set(dense_names(model)), method.base_storage
    for site in (one for one in shape.linears if one.name in names):
        weight = model.get_submodule(site.name).get_parameter("weight")
        transposed, count = isinstance(model.get_submodule(site.name), Conv1D), site.n_in * site.n_out
        # GPT-2's dense layers are transposed, and what becomes int8 is float16 first: both need a copy.
        passing = weight.nbytes if transposed else 0
        if storage["base_format"] == "int8":
            scales = FLOAT_BYTES * site.n_out
            yield f"{site.name}.weight", Packing(passing + 2 * count, count, scales, 0, scales)
            continue
        blocks = -(-count // BLOCK)
        scales, beside, kept = FLOAT_BYTES * blocks, CODE_BYTES, FLOAT_BYTES * blocks + CODE_BYTES
        if storage["double_quantization"]:  # the scales less their mean are quantised, by a code of their own
            kept = blocks + FLOAT_BYTES * (-(-blocks // SCALE_BLOCK) + 1 + SCALE_CODES) + CODE_BYTES
            beside = scales + kept
        yield f"{site.name}.weight", Packing(passing, count // 2, scales, beside, kept, 0 if transposed else site.n_in)


def _stored_bytes(section: Model) -> int:
    """Return the bytes of a number in the checkpoint, as its configuration says; 0 if it does not."""
    dtype = getattr(read_config(section, resolve(section.name, section.revision)), "dtype", None)
    return dtype.itemsize if isinstance(dtype, torch.dtype) else 0


def _as_weight(parameter: nn.Parameter) -> Weight:
    rows = len(parameter) if parameter.dim() else 1
    return Weight(rows, parameter.nbytes // max(rows, 1), trains=False)


def _bytes_to_tie(model: nn.Module) -> int:
    """Return the bytes of weights that modules draw for themselves before they are tied to those of others."""
    own = [p for module in model.modules() for p in module.parameters(recurse=False)]
    distinct = {id(p): p for p in own}.values()
    return sum(p.numel() * p.itemsize for p in own) - sum(p.numel() * p.itemsize for p in distinct)
