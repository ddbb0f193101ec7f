"""Folders of data files: which files belong to which split."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from peftlab.errors import DataError, listed, nearest, one_line
from peftlab.tables.files import FilePiece, file_kind
from peftlab.tables.packed import packing_of

ARCHIVES = {".zip", ".tar", ".tgz", ".7z", ".rar"}
# Names of the split that evaluates during training, where a source names no split; the rows of `test` choose nothing.
EVALUATION = ("validation", "valid", "dev", "evaluation", "test")
# Text files of which a folder of data has some that are no data.
ABOUT_THE_DATA = ("readme", "license", "licence", "copying", "notice", "requirements", "dataset_info", "changelog")


def default_splits(part: str) -> tuple[str, ...]:
    """Return the splits of a source that names none: the first that it has is the one for a part of a recipe's data."""
    return EVALUATION if part == "evaluation" else (part,)


def choose_split(wanted: Sequence[str], known: Collection[str]) -> str:
    """Return the first of the names that is known, else the last of them."""
    return next((name for name in wanted if name in known), wanted[-1])


def read_folder(folder: Path, wanted: Sequence[str], subset: str | None = None) -> list[FilePiece]:
    """Return the files of the first split in `wanted` that there is, in the order of their names. Raises DataError.

    Splits are found as `datasets` finds them: by the README's `configs`, else by the names of files and folders; where
    neither names one, every file is of the split train.
    """
    _refuse_archives(folder)
    splits = _find_splits(folder, subset)
    if not splits:
        raise DataError(f"{folder}: contains no data files")
    split = choose_split(wanted, splits)
    if split not in splits:
        raise DataError(f"{folder}: has no split {split!r}{nearest(split, splits)}; it has: {listed(splits)}")
    kinds = sorted({str(file_kind(path.name)) for path in splits[split]})
    if len(kinds) > 1:
        raise DataError(
            f"{folder}[{split}]: contains {' and '.join(kinds)} files; name those to read, as {folder}/*{kinds[0]}"
        )
    return [FilePiece(path) for path in splits[split]]


def _refuse_archives(folder: Path) -> None:
    """Raise DataError for an archive in a data folder: what it contains would be missing from the rows."""
    found = next((path for path in sorted(folder.rglob("*")) if _is_archive(path)), None)
    if found is not None:
        raise DataError(f"{found}: is an archive; unpack it and look at what it contains")


def _is_archive(path: Path) -> bool:
    name = path.name.removesuffix(packing_of(path.name) or "")
    return Path(name).suffix.lower() in ARCHIVES


def _find_splits(folder: Path, subset: str | None) -> dict[str, list[Path]]:
    import datasets
    from datasets.data_files import DataFilesDict, EmptyDatasetError, get_data_patterns

    try:
        if subset is not None or _names_configs(folder):
            found = datasets.load_dataset_builder(str(folder), subset).config.data_files or {}
        else:
            found = DataFilesDict.from_patterns(get_data_patterns(str(folder)), base_path=str(folder))
    except EmptyDatasetError:
        return {}
    except Exception as error:  # its errors share no base: ValueError, OSError, YAML errors
        raise DataError(f"{folder}{f':{subset}' if subset else ''}: {one_line(error)}") from None
    files = {str(split): sorted(Path(file) for file in listed_files) for split, listed_files in found.items()}
    kept = {split: [path for path in paths if _is_data(path, folder)] for split, paths in files.items()}
    return {split: paths for split, paths in kept.items() if paths}


def _names_configs(folder: Path) -> bool:
    readme = folder / "README.md"
    return readme.is_file() and "\nconfigs:" in readme.read_text(encoding="utf-8", errors="replace")


def _is_data(path: Path, folder: Path) -> bool:
    hidden = (
        any(part.startswith((".", "__")) for part in path.relative_to(folder.resolve()).parts)
        if path.is_relative_to(folder.resolve())
        else False
    )
    return file_kind(path.name) is not None and not hidden and not path.name.lower().startswith(ABOUT_THE_DATA)
