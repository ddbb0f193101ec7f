"""Secrets (hub tokens, values of this environment's secret variables), masked in all that is shown or written."""

from __future__ import annotations

import os
import re

HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
SECRET_NAME = re.compile(r"(TOKEN|API_?KEY|SECRET|PASSWORD)$", re.IGNORECASE)
# Shorter values are more likely `1` or `none` than a secret, and would be masked inside ordinary words.
SHORTEST_SECRET = 12
MASK = "***"


def mask_secrets(text: str) -> str:
    """Return the text with hub tokens, and the values of environment variables named like secrets, as `***`."""
    for value in _environment_secrets():
        text = text.replace(value, MASK)
    return HUB_TOKEN.sub(MASK, text)


def contains_secret(text: str) -> bool:
    return mask_secrets(text) != text


def _environment_secrets() -> list[str]:
    """Return the secret values, longest first, so that a value inside a longer one is masked with it."""
    found = {value for name, value in os.environ.items() if SECRET_NAME.search(name)}
    return sorted((value for value in found if len(value) >= SHORTEST_SECRET), key=len, reverse=True)
