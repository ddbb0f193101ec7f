"""Data sets that `datasets` reads: those of the hub, and folders that it saved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from peftlab.data.folders import choose_split
from peftlab.errors import DataError, listed, nearest, one_line
from peftlab.tables.arrow_files import ROWS_AT_ONCE, rows_of
from peftlab.tables.row import Row

PROBE_SECONDS = 5
# What `save_to_disk` writes beside its arrow files, for one data set and for one of several splits.
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"


@dataclass(frozen=True)
class DatasetPiece:
    """The rows of one split, from a memory map or from a network: never all in memory."""

    name: str
    dataset: Any

    def place(self, number: int) -> str:
        return f"{self.name}: row {number}"

    def rows(self, skip: int = 0) -> Iterator[Row]:
        """Yield the rows after the first `skip`; class labels are their names. Raises DataError."""
        dataset = self.dataset.skip(skip) if skip else self.dataset
        try:
            tables = dataset.with_format("arrow").iter(ROWS_AT_ONCE)
            yield from rows_of(tables, self.dataset.features, before=skip)
        except Exception as error:  # its errors share no base: ValueError, OSError, HTTP errors, generation errors
            raise DataError(f"{self.name}: {one_line(error) or type(error).__name__}") from None

    def columns(self) -> list[str]:
        names = self.dataset.column_names
        return list(names) if names is not None else list(next(self.rows()).cells)

    def files(self) -> list[Path]:
        """Return the arrow files that the rows are mapped from; none of a data set in memory or of a stream."""
        return [Path(file["filename"]) for file in getattr(self.dataset, "cache_files", ())]

    def digest(self) -> str | None:
        """Return the sha256 of the arrow files and of what `datasets` says of them."""
        if not (files := self.files()):
            return None
        digest = sha256(repr((self.dataset._fingerprint, self.dataset.features)).encode())
        for path in files:
            with path.open("rb") as file:
                digest.update(file_digest(file, "sha256").digest())
        return digest.hexdigest()


def load_hub(source: str, wanted: Sequence[str], streaming: bool) -> DatasetPiece:
    """Return the first split in `wanted` that `OWNER/NAME` or `OWNER/NAME:SUBSET` has. Raises DataError.

    `datasets` runs no remote code.
    """
    import datasets

    name, _, subset = source.partition(":")
    with _offline_where_unreachable() as offline:
        try:
            with _no_progress_bars():
                split = choose_split(wanted, _list_splits(name, subset or None)) if len(wanted) > 1 else wanted[0]
                loaded = datasets.load_dataset(name, subset or None, split=split, streaming=streaming)
        except Exception as error:  # its errors share no base, as above
            if offline:
                raise DataError(
                    f"{source}: no such file, and the hub cannot be reached: name a local file or builtin:NAME,"
                    " or fetch the data set once with a network (it is then cached)"
                ) from None
            reason = str(error.__cause__ or error).strip() or type(error).__name__
            raise DataError(f"{source}[{' or '.join(wanted)}]: {one_line(reason)}") from None
    return DatasetPiece(f"{source}[{split}]", loaded)


def _list_splits(name: str, subset: str | None) -> list[str]:
    import datasets

    return datasets.get_dataset_split_names(name, subset)


def is_saved(folder: Path) -> bool:
    """Return whether `datasets.save_to_disk` wrote this folder."""
    return (folder / SAVED).is_file() or (folder / SAVED_SPLITS).is_file()


def load_saved(folder: Path, split: str | None, wanted: Sequence[str]) -> DatasetPiece:
    """Return the data set of a folder that `datasets.save_to_disk` wrote, or the first of its splits in `wanted`.

    `split` is the one that its user names. Raises DataError.
    """
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # its errors share no base, as above
        raise DataError(f"{folder}: is not a whole saved data set: {one_line(error)}; save it again") from None
    if isinstance(loaded, datasets.DatasetDict):
        chosen = choose_split(wanted, loaded)
        if chosen not in loaded:
            raise DataError(f"{folder}: has no split {chosen!r}{nearest(chosen, loaded)}; it has: {listed(loaded)}")
        return DatasetPiece(f"{folder}[{chosen}]", loaded[chosen])
    if split not in (None, "train"):
        raise DataError(f"{folder}: has no split {split!r}; it was saved as one data set, which is the split train")
    return DatasetPiece(str(folder), loaded)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    import datasets

    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


@contextmanager
def _offline_where_unreachable() -> Iterator[bool]:
    """Ask the hub once, with a short timeout; if it does not answer, use only the cache (no minutes of retries)."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    offline = any(before) or not _hub_answers(constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = offline
    try:
        yield offline
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _hub_answers(endpoint: str) -> bool:
    from huggingface_hub import get_session

    try:
        get_session().head(endpoint, timeout=PROBE_SECONDS)
    except Exception:  # the session's library, and so its errors, differs between versions of huggingface_hub
        return False
    return True
