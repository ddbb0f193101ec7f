"""The files that a method writes: tensors as safetensors, and `peftlab_adapter.json`, which says what they are.

Every folder has `peftlab_adapter.json`: `schema` (1), `method` (all its fields), `context` (what the caller
says of the base model), `trained` (canonical names of what trained) and `tensors` (name in the weights file →
shape).
Adapters and BitFit keep their tensors in `adapter.safetensors` under canonical names. LoRA, QLoRA and prefix
are PEFT adapter folders, full fine-tuning a transformers folder; the manifest is beside their own files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, ValidationError

from peftlab.errors import StorageError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


MANIFEST = "peftlab_adapter.json"
SCHEMA = 1


class Manifest(BaseModel):
    """What a folder of trained weights contains."""

    schema_version: int = Field(SCHEMA, alias="schema")
    method: dict[str, Any]
    context: dict[str, Any]
    trained: list[str]
    tensors: dict[str, list[int]]


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors to one safetensors file. Raises StorageError where the disk refuses."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, path, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path}: cannot be written: {error}") from error


def write_manifest(
    folder: Path, method: BaseModel, model: nn.Module, context: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    """Write `peftlab_adapter.json` beside the weights."""
    from peftlab.parameters.trainable import trainable_parameters

    manifest = {
        "schema": SCHEMA,
        "method": method.model_dump(mode="json"),
        "context": context,
        "trained": sorted(trainable_parameters(model)),
        "tensors": {name: list(tensor.shape) for name, tensor in tensors.items()},
    }
    write_json(folder / MANIFEST, manifest)


def write_json(path: Path, content: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(content, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error}") from error


def read_manifest(folder: Path, method: BaseModel, context: dict[str, Any] | None) -> Manifest:
    """Read `peftlab_adapter.json`. Raises StorageError unless it is of this method and this base model."""
    manifest, path = read_saved(folder), folder / MANIFEST
    _compare_method(path, manifest.method, method)
    _compare_base(path, manifest.context.get("base_model") or {}, (context or {}).get("base_model") or {})
    return manifest


def read_saved(folder: Path) -> Manifest:
    """Return the manifest of a folder of trained weights, whatever its method and base. Raises StorageError."""
    path = folder / MANIFEST
    try:
        manifest = Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StorageError(f"{folder}: has no {MANIFEST}, so peftlab did not save it") from error
    except (OSError, ValidationError, ValueError) as error:
        raise StorageError(f"{path}: cannot be read: {_first_line(error)}") from error
    if manifest.schema_version != SCHEMA:
        raise StorageError(f"{path}: has schema {manifest.schema_version}, this peftlab reads {SCHEMA}")
    return manifest


def read_context(folder: Path) -> dict[str, Any]:
    """Return what the writer of a folder of trained weights said of them. Raises StorageError."""
    return read_saved(folder).context


def _compare_method(path: Path, saved: dict[str, Any], method: BaseModel) -> None:
    wanted = method.model_dump(mode="json", exclude={"from_"})  # where training started is not what was trained
    different = sorted(field for field in wanted if saved.get(field, wanted[field]) != wanted[field])
    if different:
        changed = ", ".join(f"{field} {saved[field]!r} (here {wanted[field]!r})" for field in different)
        raise StorageError(f"{path}: was saved with other settings of the method: {changed}")


def _compare_base(path: Path, saved: dict[str, Any], here: dict[str, Any]) -> None:
    # A fingerprint survives a moved folder; a hub model has none, and its name and commit say what it is.
    keys = ("fingerprint",) if saved.get("fingerprint") and here.get("fingerprint") else ("name", "revision")
    for key in keys:
        if saved.get(key) and here.get(key) and saved[key] != here[key]:
            trained_on = f"{saved.get('name')} ({key} {saved[key]})"
            raise StorageError(f"{path}: was trained on {trained_on}, not on {here.get('name')} ({here[key]})")


def fill_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Copy a safetensors file into live tensors. Raises StorageError unless names and shapes match exactly."""
    _fill(path, read_tensors(path), tensors)


def read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path}: cannot be read: {_first_line(error)}") from error


def _refuse_mismatch(path: Path, stored: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    missing, extra = sorted(tensors.keys() - stored.keys()), sorted(stored.keys() - tensors.keys())
    wrong = [
        f"{name} {tuple(stored[name].shape)} (the model's is {tuple(tensor.shape)})"
        for name, tensor in tensors.items()
        if name in stored and stored[name].shape != tensor.shape
    ]
    faults = [
        f"{what} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for what, names in (("lacks", missing), ("has unknown", extra), ("has the wrong shape of", wrong))
        if names
    ]
    if faults:
        raise StorageError(f"{path}: does not fit this model and method: it {'; it '.join(faults)}")


def fill_from_transformers_folder(model: PreTrainedModel, folder: Path) -> None:
    """Copy a transformers folder into `model`, each tensor in the model's own dtype.

    Raises StorageError unless the folder has every parameter and no other.
    """
    import torch

    try:
        # The model's own config: with the folder's, another kind of folder would build a model of default size.
        loaded: Any = type(model).from_pretrained(
            folder, config=model.config, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        stored, report = loaded
    except (OSError, ValueError, RuntimeError) as error:
        raise StorageError(f"{folder}: cannot be read as a model: {_first_line(error)}") from error
    faults = {what: sorted(map(str, report[what])) for what in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(faults.values()):
        names = [f"{what.replace('_', ' ')}: {', '.join(found[:3])}" for what, found in faults.items() if found]
        raise StorageError(f"{folder}: does not fit this model: {'; '.join(names)}")
    _fill(folder, stored.state_dict(), model.state_dict())


def _fill(path: Path, stored: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    """Copy what was read from `path` into live tensors, of divided ones this process's part."""
    import torch

    from peftlab.parameters.divided import divided_as

    _refuse_mismatch(path, stored, tensors)
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(divided_as(stored[name], tensor))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
