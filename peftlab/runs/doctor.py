"""What this machine can do: versions, devices, and whether each method trains here, by a trial."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch
from torch import nn

from peftlab import __version__
from peftlab.memory.private import untried_versions
from peftlab.methods import METHODS, Method
from peftlab.models.quantize import quantize_
from peftlab.runs.loading import apply_method
from peftlab.runs.versions import LIBRARIES, library_version
from peftlab.speed.apply import describe_speed_ups
from peftlab.tasks import DEFAULT_TASK
from peftlab.world.hardware import available_host_bytes, list_devices, pick_device, total_host_bytes
from peftlab.world.quiet import quiet_libraries

OPTIONAL_LIBRARIES = ("gguf", "flash-attn", "tensorboard", "wandb")
OFFLINE = ("1", "true", "yes", "on")


def report() -> dict[str, Any]:
    """Return versions, devices, memory and what each method can do; trying the methods takes seconds."""
    quiet_libraries()
    device = pick_device("auto")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {"peftlab": __version__}
        | {name: library_version(name) for name in (*LIBRARIES, *OPTIONAL_LIBRARIES)},
        "untried_versions": untried_versions(),
        "devices": list_devices(),
        "threads": torch.get_num_threads(),
        "memory_bytes": {"total": total_host_bytes(), "available": available_host_bytes()},
        "hub": "offline" if os.environ.get("HF_HUB_OFFLINE", "").lower() in OFFLINE else "online",
        "device": str(device),
        "speed": describe_speed_ups(),
        "methods": {name: describe_method(cls, device) for name, cls in METHODS.items()}
        | {name: describe_unloadable(name, reason) for name, reason in METHODS.unloadable.items()},
    }


def describe_method(cls: type[Method], device: torch.device) -> dict[str, Any]:
    """Return what happened to each variant of a method when it trained a toy model: None, or why it cannot."""
    variants = {label: try_method(method, device) for label, method in cls.variants().items()}
    return {"title": cls.title, "usable": None in variants.values(), "variants": variants}


def describe_unloadable(name: str, reason: str) -> dict[str, Any]:
    """Return what `describe_method` would for an installed method that cannot be loaded."""
    return {"title": name, "usable": False, "variants": {"default": reason}}


def try_method(method: Method, device: torch.device) -> str | None:
    """Return None if one backward pass of a toy model with the method works, else the reason in one line."""
    try:
        model = build_toy()
        if method.base_format != "plain":
            quantize_(model, method.base_format, device=device)
        model = apply_method(method, model.to(device), DEFAULT_TASK)[0].to(device)
        tokens = torch.arange(8, device=device).reshape(1, 8)
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        return None if loss.isfinite() else "the loss of a toy model is not finite"
    except Exception as error:  # any failure of a library is the answer
        return next(iter(str(error).splitlines()), "") or type(error).__name__


def build_toy() -> nn.Module:
    """Return a random two-layer GPT-2 of width 64: it has every kind of parameter that a method may train."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=64, n_embd=64, n_layer=2, n_head=2))
