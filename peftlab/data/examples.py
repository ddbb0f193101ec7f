"""Equality of examples: the content of one, and the fingerprint of many."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256

from peftlab.tasks.formats import Example


def content_key(example: Example) -> str:
    """Return a text that is equal for, and only for, examples of equal content."""
    content = asdict(example)
    if content.get("tools", ...) is None:  # as chats were before they had tools, so that their fingerprints stay
        del content["tools"]
    return json.dumps(content, sort_keys=True, ensure_ascii=False, default=repr)


def fingerprint(examples: Sequence[Example]) -> str:
    """Return the sha256 of the examples' content in their order, whatever file format they came from."""
    digest = sha256()
    for example in examples:
        digest.update(content_key(example).encode() + b"\n")
    return digest.hexdigest()
