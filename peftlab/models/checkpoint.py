"""The content and the fingerprint of a model on disk, without building the model."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

from peftlab.files import decode_json
from peftlab.models.reference import Reference

HASHED_WHOLE_BYTES = 2 * 1024**3
EDGE_BYTES = 1024**2


def stored_shapes(reference: Reference) -> dict[str, tuple[int, ...]] | None:
    """Return the shape of every tensor of a local safetensors checkpoint from the files' headers, else None."""
    if reference.kind != "folder" or reference.folder is None:
        return None
    files = sorted(reference.folder.glob("*.safetensors"))
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        shapes |= {name: tuple(entry["shape"]) for name, entry in _header(file).items() if name != "__metadata__"}
    return shapes or None


def _header(file: Path) -> dict[str, dict[str, Any]]:
    """Return a safetensors file's header, empty if the file is damaged: loading it reports the damage."""
    try:
        with file.open("rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            return decode_json(stream.read(min(size, HASHED_WHOLE_BYTES)))
    except (struct.error, ValueError):
        return {}


def fingerprint(folder: Path, files: list[str] | None = None) -> str:
    """Return `sha256:...` of the config and the weights of a model on disk.

    Of a file above 2 GiB only the size and the first and last MiB are hashed; the prefix is then `sha256-edges:`.
    """
    digest, whole = hashlib.sha256(), True
    names = files or sorted(path.name for path in folder.iterdir() if _is_content(path))
    for name in names:
        size = (folder / name).stat().st_size
        digest.update(f"{name}:{size};".encode())
        whole &= _add_file(digest, folder / name, size)
    return f"{'sha256' if whole else 'sha256-edges'}:{digest.hexdigest()}"


def _is_content(path: Path) -> bool:
    return path.name == "config.json" or path.suffix in (".safetensors", ".bin")


def _add_file(digest: hashlib._Hash, path: Path, size: int) -> bool:
    """Add a file to the digest; return whether all of its bytes were hashed."""
    with path.open("rb") as stream:
        if size <= HASHED_WHOLE_BYTES:
            while block := stream.read(8 * EDGE_BYTES):
                digest.update(block)
            return True
        digest.update(stream.read(EDGE_BYTES))
        stream.seek(-EDGE_BYTES, 2)
        digest.update(stream.read(EDGE_BYTES))
        return False
