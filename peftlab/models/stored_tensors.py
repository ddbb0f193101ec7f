"""The tensors of a plain checkpoint one at a time, by the model's own names: from safetensors files or a GGUF file.

How transformers reads a GGUF file's names and layouts is private to it: tried with transformers 5.23 and gguf 0.19.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from peftlab.models.checkpoint import stored_shapes
from peftlab.models.hub import cached_folder
from peftlab.models.reference import Reference

# The rules of transformers that make each tensor of a model of one tensor of the file, of the same shape.
ONE_TO_ONE = ("TensorProcessor", "LlamaTensorProcessor", "Gemma2TensorProcessor")


class StoredTensors(Protocol):
    """A checkpoint's tensors: their shapes by name, and the tensors, of which one is in memory at a time.

    `mapped_bytes` are those of its largest file, which is mapped while its tensors are read.
    """

    shapes: dict[str, tuple[int, ...]]
    mapped_bytes: int

    def __iter__(self) -> Iterator[tuple[str, Tensor]]: ...

    def read(self, name: str) -> Tensor:
        """Return one tensor."""


@dataclass
class Safetensors:
    """The safetensors files of a folder, in the order of their names; a file is mapped while it is read."""

    folder: Path

    def __post_init__(self) -> None:
        self.shapes = stored_shapes(Reference(label=str(self.folder), folder=self.folder)) or {}
        self.mapped_bytes = max((file.stat().st_size for file in self.folder.glob("*.safetensors")), default=0)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        from safetensors import safe_open

        for file in sorted(self.folder.glob("*.safetensors")):
            with safe_open(file, "pt") as opened:
                for name in sorted(opened.keys()):
                    yield name, opened.get_tensor(name)

    def read(self, name: str) -> Tensor:
        """Return one tensor. Raises KeyError where no file has it."""
        from safetensors import safe_open

        for file in sorted(self.folder.glob("*.safetensors")):
            with safe_open(file, "pt") as opened:
                if name in opened.keys():
                    return opened.get_tensor(name)
        raise KeyError(name)


class GgufTensors:
    """The tensors of a GGUF file in float32, as transformers reads them; none where it needs several for one.

    The file is mapped. `model`, which needs no weights, has the names.
    """

    def __init__(self, path: Path, model: PreTrainedModel):
        import gguf
        from transformers import modeling_gguf_pytorch_utils as reading

        parsed = reading.load_gguf_checkpoint(str(path))
        self._reader: Any = gguf.GGUFReader(path)
        self.mapped_bytes = path.stat().st_size
        (architecture,) = reading.read_field(self._reader, "general.architecture")
        rule = reading.TENSOR_PROCESSORS.get(architecture, reading.TensorProcessor)
        self._rule = rule(config=parsed["config"])
        names = reading.get_gguf_hf_weights_map(model, self._rule) if rule.__name__ in ONE_TO_ONE else {}
        self._found = {names[one.name]: one for one in self._reader.tensors if one.name in names}
        self.shapes = {name: tuple(int(size) for size in reversed(one.shape)) for name, one in self._found.items()}

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name in self._found:
            yield name, self.read(name)

    def read(self, name: str) -> Tensor:
        """Return one tensor, unpacked."""
        import gguf

        one = self._found[name]
        weights = gguf.dequantize(one.data, one.tensor_type)
        return torch.from_numpy(np.array(self._rule.process(weights=weights, name=one.name).weights, dtype=np.float32))


def open_tensors(reference: Reference, model: PreTrainedModel) -> StoredTensors | None:
    """Return the tensors of a model on this machine: a folder, a GGUF file, or a hub's model that is in the cache."""
    if reference.kind == "gguf" and reference.folder is not None and reference.gguf_file is not None:
        return GgufTensors(reference.folder / reference.gguf_file, model)
    folder = reference.folder or cached_folder(reference)
    return None if folder is None else Safetensors(folder)
