"""A folder of another trainer's weights: what it says of itself, joined with a recipe for what it does not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from peftlab.conversion.adapter import CONFIG, AdapterConfig, has_adapter_config, read_adapter_config
from peftlab.conversion.convert import convert
from peftlab.conversion.trainer_state import TrainerState, read_trainer_state
from peftlab.errors import MethodError, ModelError, StorageError, UsageError, listed
from peftlab.methods import METHODS
from peftlab.methods.peft_folder import WEIGHTS
from peftlab.methods.storage import read_tensors
from peftlab.models.config import auto_class
from peftlab.patterns import canonical_name
from peftlab.recipe.dump import dump_values
from peftlab.recipe.load import parse_recipe
from peftlab.recipe.schema import Recipe
from peftlab.recipe.yaml_source import parse_yaml, read_text
from peftlab.runs.loading import read_labels
from peftlab.runs.start import weights_folder
from peftlab.shapes import ModelShape
from peftlab.tasks import TASKS

NO_DATA = "-"
# The tensors of a folder say which parameters trained.
FROM_TENSORS = ("targets", "unfreeze", "freeze")
WHOLE_MODEL = "full"


@dataclass(frozen=True)
class Foreign:
    """A folder of weights, its settings if PEFT wrote it, how it was trained if it says so, and the recipe of its run.

    `recipe.method` has everything but what the tensors say. `notes` are what a user should know.
    """

    folder: Path
    recipe: Recipe
    adapter: AdapterConfig | None = None
    state: TrainerState | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name of its run: the folder's, with its parent's where it is a checkpoint."""
        path = self.folder.resolve()
        return f"{path.parent.name}-{path.name}" if path.name.startswith("checkpoint-") else path.name

    @property
    def has_data(self) -> bool:
        return self.recipe.data.train != NO_DATA


def read_foreign(folder: Path, recipe: Path | None, overrides: Sequence[str]) -> Foreign:
    """Return what is known of a folder. Raises what is wrong with it, and RecipeError for the recipe and overrides."""
    folder = weights_folder(folder)
    if (folder / "peftlab_adapter.json").is_file():
        raise UsageError(f"{folder}: peftlab wrote this folder; use its run as it is")
    adapter = read_adapter_config(folder) if has_adapter_config(folder) else None
    state, notes = read_trainer_state(folder), list[str]()
    given = _read_recipe(recipe)
    facts = _facts_of(folder, adapter)
    values = _join(given, facts, state, notes)
    _refuse_other_method(values, facts, overrides, folder)
    parsed = parse_recipe(dump_values(values), overrides)
    _refuse_contradictions(parsed, facts, folder)
    if adapter is not None and parsed.method.base_format == "plain":
        notes.append("the base is used as it is; if it was quantised in training, import with method.type=qlora")
    if adapter is None and parsed.model.name == str(folder):
        notes.append("no base is named: the folder's own weights are the base too; model.name=BASE names another")
    return Foreign(folder, parsed, adapter, state, notes)


def _read_recipe(path: Path | None) -> dict[str, Any]:
    """Return the sections of a recipe, or of another trainer's configuration as a recipe."""
    if path is None:
        return {}
    value = parse_yaml(read_text(path), str(path)).value
    if isinstance(value, dict) and {"method", "training"} & value.keys() and isinstance(value.get("data"), dict):
        return value
    return convert(path).recipe


def _facts_of(folder: Path, adapter: AdapterConfig | None) -> dict[str, dict[str, Any]]:
    """Return the sections that the folder decides."""
    if adapter is not None:
        return {"model": adapter.model, "method": adapter.method}
    config = _read_config(folder)
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(f"{folder / 'config.json'}: quantization_config: import the model before it was quantised")
    return {"model": {"name": str(folder), "task": _task_of(config, folder)}, "method": {"type": WHOLE_MODEL}}


def _read_config(folder: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise StorageError(f"{folder / 'config.json'}: cannot be read: {str(error).splitlines()[0]}") from None


def _task_of(config: Any, folder: Path) -> str:
    """Return the task whose class of model the folder contains."""
    wanted = (config.architectures or [""])[0]
    for task in TASKS.values():
        mapping = auto_class(task)._model_mapping
        if type(config) in mapping and mapping[type(config)].__name__ == wanted:
            problem = getattr(task, "problem_type", None)
            if problem is None or config.problem_type in (None, problem):
                return task.name
    raise ModelError(f"{folder / 'config.json'}: architectures: {wanted or 'none'} is a model of no task of peftlab")


def _join(
    given: dict[str, Any], facts: dict[str, dict[str, Any]], state: TrainerState | None, notes: list[str]
) -> dict[str, Any]:
    """Return the values of a recipe: the folder's where it decides, else those of a recipe, else what training was."""
    values = {name: dict(section) for name, section in given.items() if isinstance(section, dict)}
    values["model"] = facts["model"] | values.get("model", {})
    method = values.get("method", {})
    values["method"] = facts["method"] | {name: one for name, one in method.items() if name not in FROM_TENSORS}
    values.setdefault("data", {"train": NO_DATA})
    if "training" not in values:
        known = state is not None and state.learning_rate is not None
        values["training"] = {
            "steps": max(1, state.steps) if state else 1,
            "batch_size": (state and state.batch_size) or 8,
            "learning_rate": state.learning_rate if state and known else 1e-4,
        }
        if not known:
            notes.append("how it was trained is not known: `training` in its recipe is a placeholder")
    return values


def _refuse_other_method(
    values: dict[str, Any], facts: dict[str, dict[str, Any]], overrides: Sequence[str], folder: Path
) -> None:
    """Raise UsageError where a recipe or an override names a method that is not the folder's, or a kind of it."""
    own, asked = METHODS[facts["method"]["type"]], [values["method"].get("type")]
    asked += [text.partition("=")[2] for text in overrides if text.startswith("method.type=")]
    if (kind := METHODS.get(str(asked[-1]))) is not None and not issubclass(kind, own):
        raise UsageError(f"method.type: {asked[-1]}, but {folder} contains {own.title}")


def _refuse_contradictions(recipe: Recipe, facts: dict[str, dict[str, Any]], folder: Path) -> None:
    """Raise UsageError where a recipe or an override says otherwise than the folder."""
    for name, value in facts["method"].items():
        here = getattr(recipe.method, name)
        if name not in ("type", "dropout") and here != value:
            raise UsageError(f"method.{name}: {here!r}, but {folder} was trained with {value!r}; remove it")
    task = facts["model"].get("task")
    if task and TASKS[task].auto_class != recipe.task.auto_class:
        raise UsageError(f"model.task: {recipe.task.name}, but {folder} was trained for {task}; remove it")


def find_labels(foreign: Foreign, given: Sequence[str] | None) -> list[str] | None:
    """Return the classes in the order of the head's outputs: given, else the folder's, else numbers of the data.

    Raises UsageError where nothing says their order.
    """
    if not foreign.recipe.task.has_labels:
        if given:
            raise UsageError(f"--labels: task {foreign.recipe.task.name} has no classes")
        return None
    if given:
        return list(given)
    if foreign.adapter is None:
        names = _read_config(foreign.folder).id2label
        return [names[number] for number in sorted(names)]
    found = read_labels(foreign.recipe) if foreign.has_data else None
    if found and found == [str(number) for number in range(len(found))]:
        return found
    raise UsageError(
        f"{foreign.folder}: the folder does not say the order of its classes; name them as the head's outputs are "
        "ordered: --labels A,B,..."
    )


def adapt_method(foreign: Foreign, shape: ModelShape) -> Recipe:
    """Return the recipe with the method as it trained the folder's tensors. Raises MethodError."""
    recipe = foreign.recipe
    if foreign.adapter is None:
        return recipe
    try:
        names = [canonical_name(name) for name in tensor_names(foreign.folder)]
        method = recipe.method.without_training_parts().as_stored(shape, names, foreign.adapter.saved_modules)
    except MethodError as error:
        raise MethodError(f"{foreign.folder / CONFIG}: {error}") from None
    return recipe.model_copy(update={"method": method})


def tensor_names(folder: Path) -> list[str]:
    """Return the names of a PEFT folder's tensors. Raises StorageError for pickled weights and for none."""
    path = folder / WEIGHTS
    if not path.is_file():
        older = folder / "adapter_model.bin"
        remedy = f"{older.name} is a pickle; load it with PEFT and save it again" if older.exists() else "it is missing"
        raise StorageError(f"{path}: {remedy}")
    try:
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except Exception as error:  # a damaged file raises safetensors' own errors
        raise StorageError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None


def fresh_of(foreign: Foreign, model: nn.Module) -> frozenset[str]:
    """Return the head's parameters that the folder has weights of: they train, whatever the method."""
    if foreign.adapter is None:
        return frozenset()
    heads = foreign.recipe.task.head_names
    names = {canonical_name(name) for name in tensor_names(foreign.folder)}
    own = {name for name, _ in model.named_parameters()}
    return frozenset(name for name in names & own if any(part.endswith(heads) for part in name.split(".")[:-1]))


def build_foreign(foreign: Foreign, base: nn.Module) -> nn.Module:
    """Return the model that the folder is with its own library: PEFT on `base`, or transformers alone."""
    if foreign.adapter is None:
        task = foreign.recipe.task
        return auto_class(task).from_pretrained(foreign.folder, dtype=torch.float32, local_files_only=True)
    from peft import PeftModel

    return PeftModel.from_pretrained(cast("PreTrainedModel", base), foreign.folder)


def fill_foreign(foreign: Foreign, recipe: Recipe, model: nn.Module, plain: Mapping[str, torch.Tensor]) -> list[str]:
    """Copy the folder's tensors into `model`, which has the recipe's method; return notes.

    `plain` are the base's tensors by name. One that did not train is left out where it is the base's own: PEFT saves
    embeddings unasked.
    Raises StorageError where names or shapes do not match.
    """
    if foreign.adapter is None:
        recipe.method.fill(model, foreign.folder)
        return []
    own, stored = recipe.method.stored_tensors(model), read_tensors(foreign.folder / WEIGHTS)
    idle = [name for name in stored.keys() - own.keys() if _is_bases(stored[name], plain.get(canonical_name(name)))]
    unknown = sorted(stored.keys() - own.keys() - set(idle))
    if unknown:
        raise StorageError(
            f"{foreign.folder / WEIGHTS}: {unknown[0]} is not in this base or not trained by this method"
            f"{f' (and {len(unknown) - 1} more)' if len(unknown) > 1 else ''}; was the vocabulary resized, or the "
            "base another one?"
        )
    if missing := sorted(own.keys() - stored.keys()):
        raise StorageError(f"{foreign.folder / WEIGHTS}: lacks {listed(missing, 3)}")
    with torch.no_grad():
        for name, tensor in own.items():
            if stored[name].shape != tensor.shape:
                sizes = f"{tuple(stored[name].shape)}, but {tuple(tensor.shape)} on this base"
                raise StorageError(f"{foreign.folder / WEIGHTS}: {name} is {sizes}")
            tensor.copy_(stored[name])
    return [f"{listed(sorted(idle), 3)}: equal to the base's, left out"] if idle else []


def _is_bases(tensor: torch.Tensor, own: torch.Tensor | None) -> bool:
    if own is None or own.shape != tensor.shape or own.dtype == torch.uint8:
        return False
    return torch.equal(tensor.to(own.dtype), own.detach().cpu())
