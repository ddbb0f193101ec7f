"""`MANIFEST.json`: what a checkpoint folder holds to the byte, and whether it still does."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from peftlab.errors import StorageError

NAME = "MANIFEST.json"
SCHEMA = 1


class FileRecord(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int
    sha256: str


class Manifest(BaseModel):
    """The files of one checkpoint by their path inside it, and the facts that its writer states."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = Field(SCHEMA, alias="schema")
    step: int = Field(ge=0)
    files: dict[str, FileRecord]
    facts: dict[str, Any]

    @property
    def size_bytes(self) -> int:
        return sum(record.size for record in self.files.values())


def render(manifest: Manifest) -> str:
    """Return the only text that stands for `manifest`; its last member is the SHA-256 of the others."""
    content = manifest.model_dump(by_alias=True)
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps(content | {"sha256": digest}, indent=2) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Read and check a checkpoint's manifest, not yet its files. Raises StorageError with the first fault."""
    path = folder / NAME
    try:
        if folder.is_symlink() or path.is_symlink():
            raise StorageError(f"{folder}: is no checkpoint: {'it' if folder.is_symlink() else NAME} is a link")
        text = path.read_bytes().decode("utf-8")
        content = json.loads(text)
        _refuse_other_schema(path, content)
        content.pop("sha256", None)
        manifest = Manifest.model_validate(content)
    except (FileNotFoundError, NotADirectoryError):
        raise StorageError(f"{folder}: is no checkpoint: it has no {NAME}") from None
    except (OSError, ValueError, ValidationError, RecursionError) as error:
        raise StorageError(f"{path}: is damaged: {_first_line(error)}") from None
    # Only the exact text counts, so that no flipped bit passes, not even one in a space or in the digest.
    if render(manifest) != text:
        raise StorageError(f"{path}: is damaged: its content does not have the hash that it states")
    for name in manifest.files:
        _refuse_escape(path, name)
    return manifest


def verify(folder: Path) -> Manifest:
    """Read every byte of a checkpoint. Raises StorageError with the first fault."""
    manifest = read_manifest(folder)
    try:
        present = {path.relative_to(folder).as_posix(): path for path in walk_files(folder)}
        _refuse_other_files(folder, manifest, set(present) - {NAME})
        for name, record in manifest.files.items():
            _refuse_change(present[name], record)
    except OSError as error:
        raise StorageError(f"{error.filename or folder}: cannot be read: {error.strerror or error}") from None
    return manifest


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield the regular files below `folder`, in order. Raises StorageError at a link or a special file."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            yield from walk_files(Path(entry.path))
        elif stat.S_ISREG(mode):
            yield Path(entry.path)
        else:
            raise StorageError(f"{entry.path}: is a link or a special file; a checkpoint holds none")


def record_file(path: Path, sync: bool = False) -> FileRecord:
    """Return the size and hash of a file; with `sync`, after it is on the disk."""
    with path.open("rb", buffering=0) as file:
        if sync:
            os.fsync(file.fileno())
        return FileRecord(size=os.fstat(file.fileno()).st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def _refuse_other_schema(path: Path, content: Any) -> None:
    if not isinstance(content, dict) or not isinstance(content.get("schema"), int):
        raise StorageError(f"{path}: is damaged: it states no schema")
    if content["schema"] != SCHEMA:
        told = f"has schema {content['schema']}, this peftlab reads {SCHEMA}"
        raise StorageError(f"{path}: {told}; resume with the version of peftlab that wrote it")


def _refuse_escape(path: Path, name: str) -> None:
    parts = PurePosixPath(name).parts
    if not parts or name != "/".join(parts) or ".." in parts or "\\" in name or "\0" in name or name == NAME:
        raise StorageError(f"{path}: is no manifest of peftlab: {name!r} is no path inside the checkpoint")


def _refuse_other_files(folder: Path, manifest: Manifest, present: set[str]) -> None:
    missing, extra = sorted(manifest.files.keys() - present), sorted(present - manifest.files.keys())
    if missing:
        raise StorageError(f"{folder / missing[0]}: is missing from the checkpoint")
    if extra:
        raise StorageError(f"{folder / extra[0]}: does not belong to the checkpoint")


def _refuse_change(path: Path, record: FileRecord) -> None:
    size = path.stat().st_size
    if size != record.size:
        raise StorageError(f"{path}: is damaged: it has {size:,} bytes instead of {record.size:,}")
    if record_file(path).sha256 != record.sha256:
        raise StorageError(f"{path}: is damaged: its SHA-256 is not the one in {NAME}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
