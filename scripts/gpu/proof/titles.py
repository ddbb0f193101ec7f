"""Names of methods and shapes in tables."""

from __future__ import annotations

METHODS = {
    "full": "full",
    "lora": "LoRA",
    "qlora": "QLoRA",
    "adapters": "adapters",
    "prefix": "prefix",
    "bitfit": "BitFit",
}
OTHERS = {"qlora int8": "QLoRA, int8"}
SHAPES = {
    "small": "small",
    "llama-3.2-1b": "Llama-3.2-1B",
    "llama-3.1-8b": "Llama-3.1-8B",
    "llama-2-13b": "Llama-2-13B",
    "llama-3.1-70b": "Llama-3.1-70B",
}


def method_title(name: str) -> str:
    return (METHODS | OTHERS).get(name, name)


def shape_title(name: str) -> str:
    return SHAPES.get(name, name)


def short_device(name: str) -> str:
    """Return a device's name without its maker and its kind of memory: `H100 80GB`."""
    return " ".join(word for word in name.split() if word not in ("NVIDIA", "Graphics", "Device", "HBM3", "HBM3e"))
