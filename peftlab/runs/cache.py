"""What is kept between runs: tokens and measurements of memory, listed or deleted."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from peftlab.data.token_store import (
    Entry,
    TokenStore,
    base_figures_folder,
    changed_at,
    kept_files,
    measured_folder,
    plans_folder,
    size_of,
)
from peftlab.errors import StorageError
from peftlab.files import why

DAY = 24 * 3600
# What is kept beside the tokens, a file each, by its name in reports.
MEASURED = {"measurements": measured_folder, "base_figures": base_figures_folder, "plans": plans_folder}


def list_cache() -> dict[str, Any]:
    """Return the folder of tokens, its bytes, its entries, the one used last first, and what was measured."""
    store = TokenStore()
    return _describe(store, list(store.entries()), store.abandoned(), _measurements(0.0), deleted=False)


def clear_cache(unused_days: float = 0.0) -> dict[str, Any]:
    """Delete the entries and measurements that nothing used for so many days, and return which they were.

    What killed processes left of entries is deleted too. Files in these folders that peftlab did not name stay. Raises
    StorageError where something cannot be deleted, when everything else is.
    """
    store = TokenStore()
    chosen = [entry for entry in store.entries() if _is_unused(entry.folder, unused_days)]
    left = [folder for folder in store.abandoned() if _is_unused(folder, unused_days)]
    measured = _measurements(unused_days)
    found = _describe(store, chosen, left, measured, deleted=True)
    for entry in chosen:
        store.remove(entry.key)
    _delete([*left, *(path for paths in measured.values() for path in paths)])
    if stayed := next((entry.folder for entry in chosen if entry.folder.exists()), None):
        raise StorageError(f"{stayed}: cannot be deleted; check the permissions of {store.folder}")
    return found


def _delete(paths: list[Path]) -> None:
    """Delete files and folders. Raises StorageError with the first that stays, when the others are gone."""
    faults = {}
    for path in paths:
        try:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        except FileNotFoundError:  # another process deletes it too
            continue
        except OSError as error:
            faults[path] = why(error)
    for path, fault in faults.items():
        raise StorageError(f"{path}: cannot be deleted: {fault}")


def _is_unused(path: Path, days: float) -> bool:
    return time.time() - changed_at(path) >= days * DAY


def _measurements(unused_days: float) -> dict[str, list[Path]]:
    """Return the files of what was measured, by kind, that nothing used for so many days."""
    return {
        kind: [path for path in kept_files(folder()) if _is_unused(path, unused_days)]
        for kind, folder in MEASURED.items()
    }


def _describe(
    store: TokenStore, entries: list[Entry], left: list[Path], measured: dict[str, list[Path]], *, deleted: bool
) -> dict[str, Any]:
    return {
        "folder": str(store.folder),
        "bytes": sum(entry.size for entry in entries),
        "deleted": deleted,
        "entries": [_describe_entry(entry) for entry in entries],
        "unfinished": {"bytes": sum(map(size_of, left)), "count": len(left)},
        **{
            kind: {"folder": str(MEASURED[kind]()), "bytes": sum(map(size_of, paths)), "count": len(paths)}
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
