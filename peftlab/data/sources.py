"""Where rows come from: `builtin:NAME`, files, globs, folders or a hub data set; `SOURCE[SPLIT[from:to]]`."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

from peftlab.data.folders import choose_split, default_splits, read_folder
from peftlab.data.hub import is_saved, load_hub, load_saved
from peftlab.errors import DataError, nearest, one_line
from peftlab.files import user_path
from peftlab.recipe.schema import Data, list_sources
from peftlab.tables.files import SUFFIXES, FilePiece, file_kind
from peftlab.tables.packed import PACKINGS
from peftlab.tables.row import Row

BUILTIN = Path(__file__).parent.parent / "builtin"
GRAMMAR = re.compile(r"(?P<source>[^\[\]]+)(?:\[(?P<split>[^\[\]]+)(?:\[(?P<rows>[^\[\]]*)\])?\])?")
HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?(?::[\w.-]+)?")
WILDCARDS = re.compile(r"[*?]")


class Piece(Protocol):
    """One file, or one split of a data set. `place` is how messages name a row, `rows` leaves out the first `skip`.

    `files` are what the rows are read from, and `digest` is of all that they depend on: None where nothing tells it.
    """

    @property
    def name(self) -> str: ...

    def place(self, number: int) -> str: ...

    def rows(self, skip: int = 0) -> Iterator[Row]: ...

    def columns(self) -> list[str]: ...

    def files(self) -> list[Path]: ...

    def digest(self) -> str | None: ...


class Cursor(NamedTuple):
    """A place between two rows of a source: the piece, rows read of it, and rows read of all pieces."""

    piece: int = 0
    row: int = 0
    total: int = 0


START = Cursor()


@dataclass(frozen=True)
class Source:
    """The rows of `pieces` one after another, or the part of them between two bounds (rows, or `10%`)."""

    text: str
    pieces: Sequence[Piece]
    bounds: tuple[str | None, str | None] = (None, None)

    def rows(self, after: Cursor = START) -> Iterator[tuple[Cursor, Row]]:
        """Yield each row with the cursor after it, beginning at a cursor. Raises DataError where reading fails."""
        first, last = self._range
        total = after.total
        for number, piece in enumerate(self.pieces[after.piece :], start=after.piece):
            skip = after.row if number == after.piece else 0
            for read, row in enumerate(piece.rows(skip), start=skip + 1):
                total += 1
                if last is not None and total > last:
                    return
                if total > first:
                    yield Cursor(number, read, total), row

    def place(self, cursor: Cursor, row: Row) -> str:
        """Return how messages name the row before a cursor: file and line, or data set and row."""
        return self.pieces[cursor.piece].place(row.number)

    @cached_property
    def count(self) -> int:
        """The number of rows of all pieces, which are read for it."""
        return sum(1 for piece in self.pieces for _ in piece.rows())

    @cached_property
    def _range(self) -> tuple[int, int | None]:
        """The part of the rows: after which, and up to which."""
        first, last = self.bounds
        if any(bound is not None and (bound.endswith("%") or bound.startswith("-")) for bound in self.bounds):
            chosen = range(self.count)[slice(_as_row(first, self.count), _as_row(last, self.count))]
            return chosen.start, chosen.stop
        return int(first or 0), None if last is None else int(last)


def read_source(text: str, part_default: str, *, streaming: bool = False) -> Source:
    """Return the rows that `SOURCE`, `SOURCE[SPLIT]` or `SOURCE[SPLIT[a:b]]` names (a, b: rows or percent), unread.

    Without a split, files give all their rows, any other source its split for the part `part_default` of a recipe's
    data (`train`, or that of `default_splits`); `A+B` is two splits.
    With `streaming`, a hub data set is not downloaded before it is read. Raises DataError.
    """
    match = GRAMMAR.fullmatch(text.strip())
    if match is None:
        raise DataError(f"{text!r}: must have the form SOURCE, SOURCE[SPLIT] or SOURCE[SPLIT[from:to]]")
    rows = match["rows"]
    bounds = _parse_bounds(rows, text) if rows is not None else (None, None)
    splits = match["split"].split("+") if match["split"] else [None]
    pieces = [
        piece
        for split in splits
        for piece in _find_pieces(match["source"].strip(), split and split.strip(), part_default, streaming)
    ]
    return Source(text, pieces, bounds)


def read_columns(text: str, part_default: str) -> list[tuple[str, list[str]]]:
    """Return (name, columns) of each file of a source, without reading rows where a file names its columns.

    JSON names them in its first rows. Empty for a hub data set, which is not asked. Raises DataError.
    """
    match = GRAMMAR.fullmatch(text.strip())
    if match is not None and is_hub_id(match["source"].strip()):
        return []
    return [(piece.name, piece.columns()) for piece in read_source(text, part_default).pieces]


def is_hub_id(source: str) -> bool:
    """Return whether a source without its split is of the hub: no file, folder, glob or built-in data has this name."""
    try:
        local = user_path(source).exists() or user_path(source.partition(":")[0]).is_dir()
    except ValueError:
        return False
    return (
        not (local or file_kind(source) or WILDCARDS.search(source))
        and HUB_ID.fullmatch(source) is not None
        and not source.startswith("builtin:")
    )


def local_files(text: str) -> list[Path] | None:
    """Return the files that a source without its split names, by glob or one by one; None for any other source."""
    match = GRAMMAR.fullmatch(text.strip())
    place = match["source"].strip() if match else text
    if WILDCARDS.search(place):
        return _match_files(place)
    path = Path(place).expanduser()
    return [path] if file_kind(place) and path.is_file() else None


def files_of_recipe(data: Data) -> list[Path]:
    """Return the files that a recipe names as sources of rows."""
    named = [
        one.source for part in (data.train, data.evaluation, data.test, data.general) for one in list_sources(part)
    ]
    return [file for source in named for file in local_files(source) or ()]


def _find_pieces(source: str, split: str | None, part_default: str, streaming: bool) -> Sequence[Piece]:
    wanted = (split,) if split else default_splits(part_default)
    if source.startswith("builtin:"):
        return [FilePiece(_find_builtin(source.removeprefix("builtin:"), wanted))]
    try:
        path = user_path(source)
        folder, _, subset = source.partition(":")
        has_subset = bool(subset) and not path.exists() and user_path(folder).is_dir()
    except ValueError as error:
        raise DataError(f"{one_line(source, 80)}: cannot be read: {error}") from None
    if path.is_dir():
        return [load_saved(path, split, wanted)] if is_saved(path) else read_folder(path, wanted)
    if has_subset:
        return read_folder(user_path(folder), wanted, subset)
    if WILDCARDS.search(source) or file_kind(source):
        if split not in (None, "train"):
            raise DataError(f"{source}: has no split {split!r}; one file is one split, train")
        return [FilePiece(found) for found in (_match_files(source) if WILDCARDS.search(source) else [path])]
    if path.is_file():
        raise DataError(
            f"{source}: unknown file type; the name must end in {', '.join(SUFFIXES)}"
            f" (or one of these and {', '.join(PACKINGS)})"
        )
    if not HUB_ID.fullmatch(source):
        raise DataError(f"{source}: no such file, and not the id of a hub data set (OWNER/NAME or OWNER/NAME:SUBSET)")
    return [load_hub(source, wanted, streaming)]


def _match_files(pattern: str) -> list[Path]:
    """Return the files that a glob matches, by name. Raises DataError for none, and for one of unknown kind."""
    found = [Path(name) for name in sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))]
    files = [path for path in found if path.is_file()]
    if not files:
        raise DataError(f"{pattern}: matches no file (relative paths start at {Path.cwd()})")
    for path in files:
        if file_kind(path.name) is None:
            raise DataError(f"{pattern}: matches {path}, which is of unknown type; make the pattern narrower")
    return files


def _find_builtin(name: str, wanted: Sequence[str]) -> Path:
    known = sorted({path.parent.name for path in BUILTIN.glob("*/*.jsonl*")})
    if name not in known:
        raise DataError(f"builtin:{name}: no such built-in data{nearest(name, known)}; known: {', '.join(known)}")
    splits = {path.name.partition(".")[0]: path for path in sorted((BUILTIN / name).glob("*.jsonl*"))}
    split = choose_split(wanted, splits)
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
