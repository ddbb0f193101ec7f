"""Secrets (tokens, passwords in addresses, secret environment variables), masked in all that is shown or written."""

from __future__ import annotations

import os
import re

# Tokens that show what they are: of Hugging Face, GitHub, GitLab, OpenAI and its like, Slack, AWS.
TOKEN = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{20,}"
    r"|\bsk-[\w-]{20,}|\bxox[abprs]-[\w-]{10,}|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"
)
# In every scheme and without one, what is between `//` and `@` with a colon in it ends with a password.
ADDRESS = re.compile(r"((?<=:/)/?|(?<![^\s\"'=(])//)[^\s/:@\[\]]*:[^\s/]+@")
# What signs a request, in an address's query.
QUERY = re.compile(
    r"([?&](?:access_token|token|api_?key|key|secret|password|passwd|pwd|sig|signature|x-amz-signature|x-amz-credential"
    r"|x-amz-security-token|x-goog-signature)=)[^&\s#\"']+",
    re.IGNORECASE,
)
SECRET_NAME = re.compile(
    r"(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|_PWD|_PASS|(API|ACCESS|ACCOUNT|STORAGE|SECRET|PRIVATE|AUTH)_?KEY)$",
    re.IGNORECASE,
)
# Shorter values are more likely `1` or `none` than a secret, and would be masked inside ordinary words.
SHORTEST_SECRET = 12
MASK = "***"


def mask_secrets(text: str) -> str:
    """Return the text with tokens, passwords in addresses, and values of secret environment variables as `***`."""
    for value in _environment_secrets():
        text = text.replace(value, MASK)
    text = ADDRESS.sub(rf"\1{MASK}@", TOKEN.sub(MASK, text))
    return QUERY.sub(rf"\1{MASK}", text)


def contains_secret(text: str) -> bool:
    return mask_secrets(text) != text


def _environment_secrets() -> list[str]:
    """Return the secret values, longest first, so that a value inside a longer one is masked with it."""
    found = {value for name, value in os.environ.items() if SECRET_NAME.search(name)}
    return sorted((value for value in found if len(value) >= SHORTEST_SECRET), key=len, reverse=True)
