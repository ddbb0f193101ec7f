"""The versions of peftlab and of the libraries that a result depends on."""

from __future__ import annotations

import importlib.metadata
from functools import cache

from peftlab import __version__

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "safetensors")


def describe_versions() -> dict[str, str | None]:
    """Return the version of each, None for one that is not installed."""
    return {"peftlab": __version__} | {name: library_version(name) for name in LIBRARIES}


@cache  # reading a library's metadata takes milliseconds, and every trial of a comparison asks
def library_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
