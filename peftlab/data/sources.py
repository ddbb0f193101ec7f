"""Where rows come from: `builtin:NAME`, a local file or folder, or a hub data set; `SOURCE[SPLIT]`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peftlab.data.files import SUFFIXES, Table, file_kind, read_file
from peftlab.errors import DataError, nearest, one_line
from peftlab.files import user_path

BUILTIN = Path(__file__).parent.parent / "builtin"
GRAMMAR = re.compile(r"(?P<source>[^\[\]]+)(?:\[(?P<split>[^\[\]]+)(?:\[(?P<rows>[^\[\]]*)\])?\])?")
HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?(?::[\w.-]+)?")
PROBE_SECONDS = 5
ARCHIVES = {".zip", ".tar", ".tgz", ".7z", ".rar"}


def read_source(text: str, split_default: str) -> Table:
    """Read the rows that `SOURCE`, `SOURCE[SPLIT]` or `SOURCE[SPLIT[a:b]]` names (a, b: rows or percent).

    Without a split, a file gives all its rows, any other source its split `split_default`. Raises DataError.
    """
    match = GRAMMAR.fullmatch(text.strip())
    if match is None:
        raise DataError(f"{text!r}: must have the form SOURCE, SOURCE[SPLIT] or SOURCE[SPLIT[from:to]]")
    rows = match["rows"]
    bounds = _parse_bounds(rows, text) if rows is not None else (None, None)
    table = _read_split(match["source"].strip(), match["split"], split_default)
    part = table[slice(*(_as_row(bound, len(table)) for bound in bounds))]
    if not len(part):
        raise DataError(f"{text}: selects none of {len(table)} rows")
    return part


def _read_split(source: str, split: str | None, split_default: str) -> Table:
    if source.startswith("builtin:"):
        return read_file(_find_builtin(source.removeprefix("builtin:"), split or split_default))
    try:
        path = user_path(source)
    except ValueError as error:
        raise DataError(f"{one_line(source, 80)}: cannot be read: {error}") from None
    if path.is_dir():
        _refuse_archives(path)
        return _load_dataset(str(path), None, split or split_default)
    if file_kind(source):
        if split not in (None, "train"):
            raise DataError(f"{source}: has no split {split!r}; one file is one split, train")
        return read_file(path)
    if path.is_file():
        raise DataError(
            f"{source}: unknown file type; the name must end in {', '.join(SUFFIXES)} (or one of these and .gz)"
        )
    if not HUB_ID.fullmatch(source):
        raise DataError(f"{source}: no such file, and not the id of a hub data set (OWNER/NAME or OWNER/NAME:CONFIG)")
    return _read_hub(source, split or split_default)


def _refuse_archives(folder: Path) -> None:
    """Raise DataError for an archive in a data folder, which `datasets` would unpack, however large it becomes."""
    found = next((path for path in sorted(folder.rglob("*")) if path.suffix.lower() in ARCHIVES), None)
    if found is not None:
        raise DataError(f"{found}: is an archive; unpack it and look at what it contains")


def _find_builtin(name: str, split: str) -> Path:
    known = sorted({path.parent.name for path in BUILTIN.glob("*/*.jsonl*")})
    if name not in known:
        raise DataError(f"builtin:{name}: no such built-in data{nearest(name, known)}; known: {', '.join(known)}")
    splits = {path.name.partition(".")[0]: path for path in sorted((BUILTIN / name).glob("*.jsonl*"))}
    if split not in splits:
        raise DataError(f"builtin:{name}: has no split {split!r}{nearest(split, splits)}; it has: {', '.join(splits)}")
    return splits[split]


def _parse_bounds(rows: str, text: str) -> tuple[str | None, str | None]:
    match = re.fullmatch(r"\s*(-?\d{1,18}%?)?\s*:\s*(-?\d{1,18}%?)?\s*", rows)
    if match is None:
        raise DataError(f"{text}: [{rows}] must have the form from:to in rows or percent, as [:500] or [10%:20%]")
    return match[1], match[2]


def _as_row(bound: str | None, rows: int) -> int | None:
    if bound is None:
        return None
    return round(int(bound[:-1]) * rows / 100) if bound.endswith("%") else int(bound)


def _read_hub(source: str, split: str) -> Table:
    name, _, config = source.partition(":")
    with _offline_where_unreachable() as offline:
        return _load_dataset(name, config or None, split, offline)


def _load_dataset(name: str, config: str | None, split: str, offline: bool = False) -> Table:
    """Read one split through `datasets` (5.x runs no remote code); class labels become their names."""
    import datasets

    title = f"{name}:{config}" if config else name
    try:
        with _no_progress_bars():
            loaded = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # its errors share no base: ValueError, OSError, HTTP errors, generation errors
        if offline:
            raise DataError(
                f"{title}: no such file, and the hub cannot be reached: name a local file or builtin:NAME,"
                " or fetch the data set once with a network (it is then cached)"
            ) from None
        reason = str(error.__cause__ or error).strip() or type(error).__name__
        raise DataError(f"{title}[{split}]: {one_line(reason)}") from None
    columns = loaded.with_format("arrow")[:].to_pydict()
    for column, feature in loaded.features.items():
        if isinstance(feature, datasets.ClassLabel):
            columns[column] = [feature.names[i] if i is not None and i >= 0 else None for i in columns[column]]
    return Table(title, columns)


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
