"""GGUF files, parsed once: transformers parses a file anew for the tokenizer, the configuration and the weights.

It imports `gguf.GGUFReader` and `gguf.get_tensor_name_map` when it needs them (tried with transformers 5.23 and gguf
0.19), so that what stands there while it loads decides. It reads a reader only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from peftlab.models.reference import Reference

# The last file that was parsed: its place and state, and its reader.
_parsed: dict[tuple[Any, ...], Any] = {}


@contextmanager
def parsed_once(reference: Reference) -> Iterator[None]:
    """Let transformers use a reader again that parsed the same file before, until `forget_parsed`."""
    if reference.gguf_file is None:
        yield
        return
    try:
        import gguf
    except ImportError:  # transformers says what to install
        yield
        return
    module: Any = gguf
    reader, names = module.GGUFReader, module.get_tensor_name_map
    # It asks for the names of all tensors once for each module of the model.
    module.GGUFReader, module.get_tensor_name_map = _reusing(as_plain_array(reader)), lru_cache(maxsize=4)(names)
    try:
        yield
    finally:
        module.GGUFReader, module.get_tensor_name_map = reader, names


def forget_parsed() -> None:
    """Free the reader, and with it the memory of every field of the file."""
    _parsed.clear()


def as_plain_array(reader: type[Any]) -> type[Any]:
    """Return the reader with its file mapped as a plain array.

    It takes millions of slices, one for each token, and each slice of a `numpy.memmap` makes a new one in Python.
    """
    import numpy as np

    class PlainReader(reader):  # type: ignore[misc]
        @property
        def data(self) -> Any:
            return self._plain

        @data.setter
        def data(self, mapped: Any) -> None:
            self._plain = mapped.view(np.ndarray)  # the mapping lives as long as it

    return PlainReader


def _reusing(reader: Callable[..., Any]) -> Any:
    def open_file(path: Any, mode: str = "r") -> Any:
        if mode != "r":
            return reader(path, mode)
        found = os.stat(path)
        key = (os.path.realpath(path), found.st_size, found.st_mtime_ns, found.st_ino)
        if key not in _parsed:
            parsed = reader(path, mode)
            _parsed.clear()
            _parsed[key] = parsed
        return _parsed[key]

    return open_file
