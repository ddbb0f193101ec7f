"""`method.from`: the trained weights of a run, or of a folder of PEFT or transformers, as the start of a training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from peftlab.conversion.adapter import has_adapter_config, read_adapter_config
from peftlab.conversion.trainer_state import list_checkpoints
from peftlab.errors import MethodError, StorageError
from peftlab.files import user_path
from peftlab.methods import METHODS, Method
from peftlab.methods.storage import MANIFEST, read_saved
from peftlab.recipe.schema import Recipe
from peftlab.runs.digests import RECORD, WEIGHTS, refuse_changed
from peftlab.runs.directory import MARKER, RunDirectory

PLACE = "method.from"


@dataclass(frozen=True)
class Start:
    """A folder of trained weights, and the settings beside them that decide what its model computes.

    `base` is what identifies the base that they were trained on, `labels` are the classes of their head in the order of
    its outputs; both are empty where the folder does not say.
    """

    folder: Path
    settings: dict[str, Any]
    base: dict[str, Any]
    labels: tuple[str, ...] = ()


def find_start(wanted: str) -> Start:
    """Return the trained weights that a recipe starts from. Raises StorageError where there are none."""
    try:
        return _read_start(weights_folder(user_path(wanted)))
    except (StorageError, MethodError) as error:
        raise type(error)(f"{PLACE}: {error}") from None


def _read_start(folder: Path) -> Start:
    if (folder / MANIFEST).is_file():
        saved = read_saved(folder)
        method: Method = METHODS[saved.method["type"]].model_validate(saved.method)
        labels = tuple(saved.context.get("labels") or ())
        return Start(folder, method.outputs_depend_on(), saved.context.get("base_model") or {}, labels)
    if has_adapter_config(folder):
        return Start(folder, read_adapter_config(folder).method, {})
    return Start(folder, {}, {})


def weights_folder(path: Path) -> Path:
    """Return the folder of weights that a name means: that of a run, or a folder of weights itself.

    Raises StorageError for anything else, and for a run that has changed since it was saved.
    """
    if (path / MARKER).is_file():
        directory = RunDirectory.open(path)
        refuse_changed(path, (*RECORD, WEIGHTS))
        directory.refuse_outdated_weights()
        if not directory.has_weights():
            raise StorageError(f"{path}: this run has no trained weights")
        return directory.weights
    if not path.is_dir():
        raise StorageError(f"{path}: no such folder")
    if has_adapter_config(path) or (path / "config.json").is_file() or (path / MANIFEST).is_file():
        return path
    inside = list_checkpoints(path)
    remedy = f"name its checkpoint, {inside[-1]}" if inside else "name a run, or a folder of PEFT or transformers"
    raise StorageError(f"{path}: has no adapter_config.json and no config.json; {remedy}")


def fill_start(recipe: Recipe, model: nn.Module, base: dict[str, Any]) -> str:
    """Copy the weights that a recipe starts from into `model`, which has its method; return a line about them.

    `base` identifies the model's base. Raises StorageError or MethodError where the weights do not fit.
    """
    method = recipe.method
    start = find_start(method.from_ or "")
    try:
        method.without_training_parts().fill(model, start.folder)
    except StorageError as error:
        raise StorageError(f"{PLACE}: {error}") from None
    _refuse_other_settings(method, start)
    old, new = start.base.get("fingerprint"), base.get("fingerprint")
    other = f"; they were trained on another base ({start.base.get('name')})" if old and new and old != new else ""
    return f"training starts from the weights in {start.folder}{other}"


def _refuse_other_settings(method: Method, start: Start) -> None:
    here = method.outputs_depend_on()
    for name, value in here.items():
        if name in start.settings and start.settings[name] != value:
            raise MethodError(
                f"method.{name}: {value!r} here, but the weights in {start.folder} were trained with "
                f"{start.settings[name]!r}; set that value, or remove {PLACE}"
            )
