"""`MANIFEST.json`: the size and hash of every file of a checkpoint or a run, and their verification."""

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
SCHEMA: Literal[1] = 1


class FileRecord(BaseModel):
    """Size in bytes and SHA-256 of one file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int
    sha256: str


class Manifest(BaseModel):
    """The files of one checkpoint or run by their path inside it, and facts that the writer recorded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = Field(default=SCHEMA, alias="schema")
    step: int = Field(ge=0)
    files: dict[str, FileRecord]
    facts: dict[str, Any]

    @property
    def size_bytes(self) -> int:
        return sum(record.size for record in self.files.values())


def render(manifest: Manifest) -> str:
    """Return the one JSON text of `manifest`; its last member is the SHA-256 of the others."""
    content = manifest.model_dump(by_alias=True)
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    return json.dumps(content | {"sha256": digest}, indent=2) + "\n"


def read_manifest(folder: Path, what: str = "checkpoint") -> Manifest:
    """Return a folder's manifest, checked without reading the files. Raises StorageError at the first fault."""
    path = folder / NAME
    try:
        linked = folder.is_symlink() and what == "checkpoint"  # a run may be where a user wants it
        if linked or path.is_symlink():
            raise StorageError(f"{folder}: is not a {what}: {'it' if linked else NAME} is a symbolic link")
        if path.exists() and not path.is_file():
            raise StorageError(f"{path}: is not a regular file")
        text = path.read_bytes().decode("utf-8")
        content = json.loads(text)
        _refuse_other_schema(path, content)
        content.pop("sha256", None)
        manifest = Manifest.model_validate(content)
    except (FileNotFoundError, NotADirectoryError):
        raise StorageError(f"{folder}: is not a {what}: it has no {NAME}") from None
    except (OSError, ValueError, ValidationError, RecursionError) as error:
        raise StorageError(f"{path}: is damaged: {_first_line(error)}") from None
    # Compare the exact text, so that every flipped bit is found, even one in a space or in the digest.
    if render(manifest) != text:
        raise StorageError(f"{path}: is damaged: its content does not match its own hash")
    for name in manifest.files:
        _refuse_escape(path, name)
    return manifest


def verify(folder: Path) -> Manifest:
    """Return the manifest after reading every byte of the checkpoint. Raises StorageError at the first fault."""
    manifest = read_manifest(folder)
    try:
        present = {path.relative_to(folder).as_posix(): path for path in walk_files(folder)}
        _refuse_other_files(folder, manifest, set(present) - {NAME})
        for name, record in manifest.files.items():
            refuse_change(present[name], record)
    except OSError as error:
        raise StorageError(f"{error.filename or folder}: cannot be read: {error.strerror or error}") from None
    return manifest


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield the regular files below `folder`, sorted by path. Raises StorageError at a link or a special file."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            yield from walk_files(Path(entry.path))
        elif stat.S_ISREG(mode):
            yield Path(entry.path)
        else:
            raise StorageError(f"{entry.path}: is a symbolic link or special file, which checkpoints never contain")


def record_file(path: Path, sync: bool = False) -> FileRecord:
    """Return the size and hash of a file; with `sync`, after flushing it to the disk."""
    with path.open("rb", buffering=0) as file:
        if sync:
            os.fsync(file.fileno())
        return FileRecord(size=os.fstat(file.fileno()).st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def _refuse_other_schema(path: Path, content: Any) -> None:
    if not isinstance(content, dict) or not isinstance(content.get("schema"), int):
        raise StorageError(f"{path}: is damaged: it has no schema number")
    if content["schema"] != SCHEMA:
        message = f"has schema {content['schema']}, but this version of peftlab reads schema {SCHEMA}"
        raise StorageError(f"{path}: {message}; resume with the version that wrote it")


def _refuse_escape(path: Path, name: str) -> None:
    parts = PurePosixPath(name).parts
    if not parts or name != "/".join(parts) or ".." in parts or "\\" in name or "\0" in name or name == NAME:
        raise StorageError(f"{path}: is not a manifest of peftlab: {name!r} is not a path inside the checkpoint")


def _refuse_other_files(folder: Path, manifest: Manifest, present: set[str]) -> None:
    missing, extra = sorted(manifest.files.keys() - present), sorted(present - manifest.files.keys())
    if missing:
        raise StorageError(f"{folder / missing[0]}: is missing from the checkpoint")
    if extra:
        raise StorageError(f"{folder / extra[0]}: does not belong to the checkpoint")


def refuse_change(path: Path, record: FileRecord, contents: bool = True) -> None:
    """Raise StorageError unless a file has its recorded size and, if `contents`, its recorded hash."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise StorageError(f"{path}: is not a regular file")
    if found.st_size != record.size:
        raise StorageError(f"{path}: is damaged: it has {found.st_size:,} bytes instead of {record.size:,}")
    if contents and record_file(path).sha256 != record.sha256:
        raise StorageError(f"{path}: is damaged: its SHA-256 differs from the one in {NAME}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
