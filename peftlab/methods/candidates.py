"""What a pattern that matches nothing could have meant, and which modules a pattern means."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from peftlab.patterns import matches, matching
from peftlab.shapes import ModelShape

SHOWN = 16


def describe_candidates(pattern: str, names: Iterable[str]) -> str:
    """Return the parts of dotted names that a pattern could have meant, the nearest first, or that there are none."""
    parts = dict.fromkeys(part for name in names for part in name.split(".") if not part.isdigit())
    if not parts:
        return "there is none that it could mean"
    near = get_close_matches(pattern.replace("*", "").split(".")[-1], parts, n=3, cutoff=0.5)
    shown = list(dict.fromkeys([*near, *parts]))
    return f"candidates: {', '.join(shown[:SHOWN])}{', …' if len(shown) > SHOWN else ''}"


def describe_tied(pattern: str, shape: ModelShape) -> str:
    """Return a note that a pattern names a layer whose weight is another's; empty if it does not."""
    layers = matching([pattern], [site.name for site in shape.linears])
    return f"{layers[0]} is tied to the embedding, whose name trains both; " if layers else ""


def outermost(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the names that a pattern matches, without those inside another of them."""
    found: list[str] = []
    for name in names:
        if matches(pattern, name) and not any(name.startswith(f"{outer}.") for outer in found):
            found.append(name)
    return found
