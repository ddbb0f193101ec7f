"""Patterns over dotted parameter and module names, as recipes write them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

WRAPPER_PARTS = re.compile(r"^(?:module\.)?(?:base_model\.model\.|base_model\.)?")


@lru_cache(maxsize=1024)
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Return a compiled pattern that matches consecutive whole components anywhere in a dotted name.

    `q_proj` matches `model.layers.0.self_attn.q_proj.weight`, `layers.3` matches all of layer 3. `*` and `?` stay
    within a component, `**` crosses dots: `*norm*`, `layers.?.mlp`, `encoder.**.bias`.
    """
    pieces = re.split(r"(\*\*|\*|\?)", pattern)
    wild = {"**": ".*", "*": "[^.]*", "?": "[^.]"}
    body = "".join(wild.get(piece, re.escape(piece)) for piece in pieces)
    return re.compile(rf"(?:^|\.){body}(?:\.|$)")


def matches(pattern: str, name: str) -> bool:
    """Whether `pattern` matches consecutive whole components of the dotted `name`."""
    return compile_pattern(pattern).search(name) is not None


def matching(patterns: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return the names that at least one pattern matches, in their order."""
    patterns = list(patterns)
    return [name for name in names if any(matches(pattern, name) for pattern in patterns)]


def unmatched(patterns: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return the patterns that match none of the names."""
    names = list(names)
    return [pattern for pattern in patterns if not any(matches(pattern, name) for name in names)]


def canonical_name(name: str) -> str:
    """Return a parameter's name in the plain model, without the components that wrapping libraries add.

    `base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight` becomes
    `model.layers.0.self_attn.q_proj.weight`; `...q_proj.lora_A.default.weight` loses `default`.
    """
    name = WRAPPER_PARTS.sub("", name)
    return re.sub(r"\.(?:token_adapter\.base_layer|base_layer|modules_to_save\.default|default)(?=\.|$)", "", name)
