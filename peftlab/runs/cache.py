"""What is kept between runs: tokens and measurements of memory, listed or deleted."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from peftlab.data.token_store import Entry, TokenStore, base_figures_folder, measured_folder, plans_folder
from peftlab.errors import StorageError
from peftlab.files import why

DAY = 24 * 3600
# What is kept beside the tokens, a file each, by its name in reports.
MEASURED = {"measurements": measured_folder, "base_figures": base_figures_folder, "plans": plans_folder}


def list_cache() -> dict[str, Any]:
    """Return the folder of tokens, its bytes, its entries, the one used last first, and what was measured."""
    store = TokenStore()
    return _describe(store, list(store.entries()), _measurements(0.0), deleted=False)


def clear_cache(unused_days: float = 0.0) -> dict[str, Any]:
    """Delete the entries and measurements that nothing used for so many days, and return which they were.

    Raises StorageError where they cannot be deleted.
    """
    store = TokenStore()
    chosen = [entry for entry in store.entries() if time.time() - entry.used >= unused_days * DAY]
    measured = _measurements(unused_days)
    found = _describe(store, chosen, measured, deleted=True)
    for entry in chosen:
        store.remove(entry.key)
        if entry.folder.exists():
            raise StorageError(f"{entry.folder}: cannot be deleted; check the permissions of {store.folder}")
    for path in (path for paths in measured.values() for path in paths):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"{path}: cannot be deleted: {why(error)}") from None
    return found


def _measurements(unused_days: float) -> dict[str, list[Path]]:
    """Return the files of what was measured, by kind, that nothing used for so many days."""
    until = time.time() - unused_days * DAY
    found = {kind: sorted(folder().glob("*.json")) for kind, folder in MEASURED.items()}
    return {kind: [path for path in paths if path.stat().st_mtime <= until] for kind, paths in found.items()}


def _describe(
    store: TokenStore, entries: list[Entry], measured: dict[str, list[Path]], *, deleted: bool
) -> dict[str, Any]:
    return {
        "folder": str(store.folder),
        "bytes": sum(entry.size for entry in entries),
        "deleted": deleted,
        "entries": [_describe_entry(entry) for entry in entries],
        **{
            kind: {
                "folder": str(MEASURED[kind]()),
                "bytes": sum(path.stat().st_size for path in paths),
                "count": len(paths),
            }
            for kind, paths in measured.items()
        },
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
