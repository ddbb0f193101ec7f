"""State as safetensors and JSON: nested plain values and tensors, restored bit for bit, without pickle.

`NAME.safetensors` contains tensors and arrays under running numbers. `NAME.json` contains the structure: null,
booleans, strings, integers, finite numbers and lists as they are, and an object with one member for the rest:
{"tensor": number}, {"array": number}, {"scalar": number} (NumPy's), {"tuple": [...]}, {"dict": [[key, value], ...]},
{"float": 8 bytes in hex} (infinite or NaN), {"int": hex} (beyond 64 bits).
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from peftlab.errors import StorageError
from peftlab.files import why

SCHEMA = 1


@dataclass(frozen=True)
class EncodedState:
    """A state in the form of its two files, with tensors on the CPU."""

    structure: Any
    tensors: dict[str, Tensor]

    @property
    def size_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


def encode_state(state: Any, name: str, copy: bool = False) -> EncodedState:
    """Return `state` in the form in which it is written. Raises TypeError with the place of a value that has none.

    With `copy` it shares no memory with `state`, which may then change. A tensor that occurs twice is written
    once, and is one object again after loading. Devices, strides and gradients are not kept.
    """
    encoder = _Encoder(copy)
    structure = {"schema": SCHEMA, "state": encoder.encode(state, name)}
    return EncodedState(structure, encoder.tensors)


def write_state(folder: Path, name: str, encoded: EncodedState) -> None:
    """Write `NAME.safetensors` and `NAME.json` in `folder`. Raises StorageError if writing fails."""
    try:
        save_file(encoded.tensors, folder / f"{name}.safetensors")
        (folder / f"{name}.json").write_text(json.dumps(encoded.structure, allow_nan=False), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{folder / name}: cannot be written: {why(error)}") from None


def save_state(folder: Path, name: str, state: Any) -> None:
    """Write `state` as `NAME` in `folder`: see `encode_state` and `write_state`."""
    write_state(folder, name, encode_state(state, name))


def load_state(folder: Path, name: str) -> Any:
    """Return the state that `save_state` wrote, its tensors on the CPU. Raises StorageError if it is damaged."""
    path = folder / f"{name}.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            raise StorageError(f"{path}: is not a state of schema {SCHEMA}, which this version of peftlab reads")
        return _decode(content["state"], _read_tensors(folder / f"{name}.safetensors"))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, struct.error, RecursionError) as error:
        raise StorageError(f"{folder / name}: cannot be read: {_first_line(error)}") from None


class _Encoder:
    """Turns a state into JSON and collects its tensors."""

    def __init__(self, copy: bool):
        self.copy = copy
        self.tensors: dict[str, Tensor] = {}
        self._numbers: dict[int, str] = {}
        self._kept: list[Tensor] = []
        self._storages: set[int] = set()

    def encode(self, value: Any, place: str) -> Any:
        # Exact types only: a subclass (np.float64 of float, OrderedDict of dict) would come back as its base.
        kind = type(value)
        if value is None or kind in (bool, str):
            return value
        if kind is int:
            return value if value.bit_length() < 64 else {"int": hex(value)}
        if kind is float:
            return value if math.isfinite(value) else {"float": struct.pack(">d", value).hex()}
        if kind in (list, tuple):
            items = [self.encode(item, f"{place}[{index}]") for index, item in enumerate(value)]
            return items if kind is list else {"tuple": items}
        if kind is dict:
            return {"dict": [[self.encode(k, place), self.encode(v, f"{place}[{k!r}]")] for k, v in value.items()]}
        return self._encode_tensor(value, place)

    def _encode_tensor(self, value: Any, place: str) -> dict[str, str]:
        if type(value) in (Tensor, nn.Parameter):
            return {"tensor": self._number(value, place)}
        if type(value) is np.ndarray or isinstance(value, np.generic):
            return {"array" if type(value) is np.ndarray else "scalar": self._number(_from_numpy(value, place), place)}
        raise TypeError(f"{place}: a {type(value).__module__}.{type(value).__qualname__} cannot be saved exactly")

    def _number(self, tensor: Tensor, place: str) -> str:
        """Return the number of a tensor, the same for the same object (bitsandbytes shares its code books)."""
        if id(tensor) not in self._numbers:
            number = str(len(self.tensors))
            self.tensors[number] = self._contiguous(tensor, place)
            self._numbers[id(tensor)] = number
            self._kept.append(tensor)  # a living tensor's id is unique
        return self._numbers[id(tensor)]

    def _contiguous(self, tensor: Tensor, place: str) -> Tensor:
        """Return the tensor, contiguous and in memory shared with no other of the file, as safetensors requires."""
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.dtype is torch.complex128:
            raise TypeError(f"{place}: a {tensor.layout} tensor of {tensor.dtype} cannot be saved exactly")
        contiguous = tensor.detach().cpu().contiguous().resolve_conj().resolve_neg()
        storage = contiguous.untyped_storage().data_ptr()
        same = self.copy and storage == tensor.untyped_storage().data_ptr()
        if same or storage in self._storages:
            contiguous = contiguous.clone()
        self._storages.add(storage)
        return contiguous


def _from_numpy(value: np.ndarray | np.generic, place: str) -> Tensor:
    array = np.array(value, order="C")
    if array.dtype.kind not in "biufc" or not array.dtype.isnative:
        raise TypeError(f"{place}: a NumPy array of {array.dtype} cannot be saved exactly")
    return torch.from_numpy(array)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    # Cloned: safetensors maps the file into memory. That would keep a removed checkpoint's disk space in use,
    # raise SIGBUS when the file shrinks, and be less aligned than memory that torch allocates.
    with safe_open(path, framework="pt") as file:
        return {number: file.get_tensor(number).clone() for number in file.keys()}  # noqa: SIM118


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    return _DECODERS[tag](content, tensors)


_DECODERS = {
    "tensor": lambda content, tensors: tensors[content],
    "array": lambda content, tensors: tensors[content].numpy(),
    "scalar": lambda content, tensors: tensors[content].numpy()[()],
    "tuple": lambda content, tensors: tuple(_decode(item, tensors) for item in content),
    "dict": lambda content, tensors: {_decode(key, tensors): _decode(item, tensors) for key, item in content},
    "float": lambda content, tensors: struct.unpack(">d", bytes.fromhex(content))[0],
    "int": lambda content, tensors: int(content, 16),
}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
