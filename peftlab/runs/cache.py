"""What is kept between runs: the entries of the token store, listed or deleted."""

from __future__ import annotations

import time
from typing import Any

from peftlab.data.token_store import Entry, TokenStore
from peftlab.errors import StorageError

DAY = 24 * 3600


def list_cache() -> dict[str, Any]:
    """Return the folder, its bytes, and its entries, the one used last first."""
    store = TokenStore()
    return _describe(store, list(store.entries()), deleted=False)


def clear_cache(unused_days: float = 0.0) -> dict[str, Any]:
    """Delete the entries that nothing used for so many days, and return which they were.

    Raises StorageError where they cannot be deleted.
    """
    store = TokenStore()
    chosen = [entry for entry in store.entries() if time.time() - entry.used >= unused_days * DAY]
    found = _describe(store, chosen, deleted=True)
    for entry in chosen:
        store.remove(entry.key)
        if entry.folder.exists():
            raise StorageError(f"{entry.folder}: cannot be deleted; check the permissions of {store.folder}")
    return found


def _describe(store: TokenStore, entries: list[Entry], *, deleted: bool) -> dict[str, Any]:
    return {
        "folder": str(store.folder),
        "bytes": sum(entry.size for entry in entries),
        "deleted": deleted,
        "entries": [_describe_entry(entry) for entry in entries],
    }


def _describe_entry(entry: Entry) -> dict[str, Any]:
    about, parts = entry.content.get("about", {}), entry.content.get("parts")
    return {
        "key": entry.key,
        "sources": about.get("sources", ["?"]),
        "task": about.get("task"),
        "rows": None if parts is None else sum(part["report"]["rows"] for part in parts.values()),
        "bytes": entry.size,
        "days_unused": max(0.0, time.time() - entry.used) / DAY,
    }
