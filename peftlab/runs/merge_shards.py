"""Merging a checkpoint shard by shard: a model of any size in the memory of a few of its tensors."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peftlab.errors import StorageError, listed
from peftlab.memory.merging import ShardBytes
from peftlab.methods import Method
from peftlab.methods.storage import read_saved
from peftlab.models.build import build_meta
from peftlab.models.load import fit_tokenizer, load_saved_tokenizer
from peftlab.models.reference import resolve
from peftlab.models.stored_tensors import Safetensors, StoredTensors, open_tensors
from peftlab.parameters.trainable import find_base
from peftlab.recipe.schema import Recipe

# Bytes of one written file, which are in memory while it is written, twice.
SHARD_BYTES = 200 * 2**20
INDEX = "model.safetensors.index.json"
# float32 tensors of a weight's size while its update is added: the update, the scaled one, their sum with the weight.
UPDATE_COPIES = 3


@dataclass
class Shards:
    """The tensors of a plain checkpoint, and those that a run stored, by the model's own names.

    `added` are the stored tensors that the checkpoint does not have, `model` is without weights. `trained` are names
    of tensors of the checkpoint that are trained ones already: those of a run that stores its whole model. `stale` are
    the checkpoint's copies of a tied tensor that was trained under its other name; without them a reload ties it again.
    """

    source: StoredTensors
    model: PreTrainedModel
    method: Method
    stored: dict[str, Tensor]
    added: list[str]
    trained: frozenset[str] = frozenset()
    stale: frozenset[str] = frozenset()
    counts: Counter[str] = field(default_factory=Counter)
    unchanged: set[str] = field(default_factory=set)

    def write(self, folder: Path, dtype: torch.dtype) -> dict[str, int]:
        """Write the merged tensors and the config to `folder`; return how many were merged, trained, copied.

        Raises StorageError if a stored tensor has no place in the result.
        """
        self.counts, self.unchanged = Counter(), set()
        places: dict[str, str] = {}
        total, files = 0, 0
        for files, (tensors, size) in enumerate(self._shards(dtype), start=1):
            file = f"model-{files:05}.safetensors"
            save_file(tensors, folder / file, metadata={"format": "pt"})
            places |= dict.fromkeys(tensors, file)
            total += size
            tensors.clear()  # or they would be in memory while those of the next file are made
        if files == 1:
            (folder / "model-00001.safetensors").rename(folder / "model.safetensors")
        else:
            index = {"metadata": {"total_size": total}, "weight_map": places}
            (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        self._refuse_lost(set(places))
        self.model.config.dtype = dtype
        self.model.config.use_cache = True
        self.model.config.architectures = [type(self.model).__name__]
        self.model.config.save_pretrained(folder)
        return dict(self.counts)

    @property
    def stored_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.stored.values())

    def plan(self, dtype: torch.dtype) -> ShardBytes:
        """Return what `write` has in memory."""
        written, size = 0, 0
        for shape in self.source.shapes.values():
            size += math.prod(shape) * dtype.itemsize
            written, size = max(written, size), 0 if size >= SHARD_BYTES else size
        updated = self.method.updated_weights(self.stored) & self.source.shapes.keys()
        largest = max((math.prod(self.source.shapes[name]) for name in updated), default=0)
        return ShardBytes(self.stored_bytes, self.source.mapped_bytes, written, working=UPDATE_COPIES * 4 * largest)

    def _shards(self, dtype: torch.dtype) -> Iterator[tuple[dict[str, Tensor], int]]:
        """Yield the tensors of each file and their bytes."""
        tensors: dict[str, Tensor] = {}
        size = 0
        for name, tensor in self._tensors():
            tensors[name] = tensor.to(dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
            size += tensors[name].nbytes
            if size >= SHARD_BYTES:
                yield tensors, size
                tensors, size = {}, 0
        if tensors:
            yield tensors, size

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.source:
            if name not in self.stale:
                yield name, self._merged(name, tensor)
        for name in self.added:
            self.counts["trained"] += 1
            yield name, self.stored[name]

    def _merged(self, name: str, weight: Tensor) -> Tensor:
        module = self.model.get_submodule(name.rpartition(".")[0])
        found = self.method.merge_tensor(name, weight, self.stored, transposed=isinstance(module, Conv1D))
        if found is None:
            self.unchanged.add(name)
        trained = name in self.stored or name in self.trained
        self.counts["trained" if trained else "copied" if found is None else "merged"] += 1
        return weight if found is None else found

    def _refuse_lost(self, written: set[str]) -> None:
        own = {name for name in self.stored if not self.method.merges_away(name)}
        updated = self.method.updated_weights(self.stored)
        if lost := sorted((own - written) | (updated - written) | (updated & self.unchanged)):
            raise StorageError(f"merging lost what was trained of {listed(lost[:3])}; nothing was written")


def open_shards(recipe: Recipe, weights: Path, base: str, labels: Sequence[str] | None) -> Shards | None:
    """Return the shards that a run can be merged from; None where its model has to be built for it.

    Shards need a base on this machine whose tensors have the model's own names and shapes: a folder of safetensors, a
    hub's model in the cache, or a GGUF file. They suit neither a quantised base to be dequantised, nor added tokens,
    nor a method that changed the base when it started.
    """
    method = recipe.method
    if not method.merges_by_tensor or base == "dequantised" or recipe.model.add_tokens:
        return None
    whole = method.stores == "all"
    if recipe.model.init == "random" and not whole:
        return None
    model, _ = build_meta(recipe.model, labels)
    fit_tokenizer(model, load_saved_tokenizer(weights, recipe.model))  # a decoder's head reads the token before padding
    reference = resolve(recipe.model.name, recipe.model.revision)
    source = Safetensors(weights) if whole else open_tensors(reference, model)
    if source is None or not source.shapes:
        return None
    stored = {} if whole else method.read_stored(weights)
    wanted = {name: tuple(one.shape) for name, one in find_base(model)[1].state_dict().items()}
    own = {name: tuple(one.shape) for name, one in stored.items() if name in wanted}
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    lacking = wanted.keys() - source.shapes.keys() - own.keys() - tied
    if lacking or any(wanted.get(name) != shape for name, shape in (source.shapes | own).items()):
        return None
    trained = frozenset(read_saved(weights).trained) if whole else frozenset()
    added = [name for name in own if name not in source.shapes]
    return Shards(source, model, method, stored, added, trained, find_stale(model, source, own.keys()))


def find_stale(model: PreTrainedModel, source: StoredTensors, stored: Set[str]) -> frozenset[str]:
    """Return the names of a checkpoint's tensors that are tied to a stored one when transformers reads it.

    It ties two names where the file has one of them, or equal tensors for both.
    """
    found = set()
    for pair in dict(getattr(model, "all_tied_weights_keys", None) or {}).items():
        for own, other in (pair, pair[::-1]):
            if own not in stored or other in stored or other not in source.shapes:
                continue
            if own not in source.shapes or torch.equal(source.read(own), source.read(other)):
                found.add(other)
    return frozenset(found)
