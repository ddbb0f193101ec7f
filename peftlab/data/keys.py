"""Keys by which rows are compared, 16 bytes for each, however long the texts are."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np

KEY_BYTES = 16


class Keys:
    """Keys of texts in their order: equal for equal texts, and (but for a chance of 2**-128) for no others."""

    def __init__(self) -> None:
        self._content = bytearray()

    @classmethod
    def of(cls, texts: Iterable[str]) -> Keys:
        keys = cls()
        for text in texts:
            keys.add(text)
        return keys

    def add(self, text: str) -> None:
        self._content += blake2b(text.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()

    def __len__(self) -> int:
        return len(self._content) // KEY_BYTES

    def numbers(self) -> np.ndarray:
        """Return a number for each key, the same for the same key."""
        return np.unique(self._array, return_inverse=True)[1]

    def among(self, known: Keys) -> np.ndarray:
        """Return for each key whether it is among the known ones, as booleans."""
        return np.isin(self._array, np.unique(known._array))

    @property
    def _array(self) -> np.ndarray:
        return np.frombuffer(self._content, f"V{KEY_BYTES}")
