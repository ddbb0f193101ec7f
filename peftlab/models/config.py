"""A model's configuration: read from its folder, file or hub id, and fitted to the recipe's task."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils.peft_utils import find_adapter_config_file

from peftlab.errors import MissingRequirementError, ModelError, PeftlabError
from peftlab.family_traits import NEEDS_MORE
from peftlab.models.gguf import parsed_once
from peftlab.models.hub import must_stay_local
from peftlab.models.reference import Reference, resolve
from peftlab.recipe.schema import Model
from peftlab.tasks import TASKS, Task
from peftlab.world.meeting import is_lost_connection


def auto_class(task: Task) -> Any:
    """Return the transformers class that builds models for a task."""
    return getattr(transformers, task.auto_class)


@contextlib.contextmanager
def one_line_errors(reference: Reference, doing: str) -> Iterator[None]:
    """Turn the errors of transformers into a ModelError of one line, and suppress what it prints.

    A damaged file can raise nearly any error (OSError, KeyError, SafetensorError, struct.error, ...).
    """
    try:
        # transformers shows a progress bar for GGUF files that none of its settings disables.
        with contextlib.redirect_stderr(io.StringIO()), parsed_once(reference):
            yield
    except (PeftlabError, MemoryError):
        raise
    except ImportError as error:
        raise MissingRequirementError(f"model {reference.label!r}: {_first_line(error)}") from error
    except Exception as error:
        # Processes that each read a part exchange tensors: one that has ended is not a damaged model.
        if "out of memory" in str(error).lower() or is_lost_connection(error):
            raise
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"model {reference.label!r} needs to run code from its repository; read that code, then set "
                "model.trust_remote_code=true and pin model.revision"
            ) from error
        raise ModelError(
            f"model {reference.label!r} cannot be {doing} ({reference.source}): {_first_line(error)}"
        ) from error


def hub_arguments(reference: Reference, section: Model) -> dict[str, Any]:
    """Return the keyword arguments for transformers' `from_pretrained`. Raises ModelError if it is unreachable."""
    local = reference.kind != "hub" or must_stay_local(reference)
    return {**reference.arguments, "local_files_only": local, "trust_remote_code": section.trust_remote_code}


def read_config(section: Model, reference: Reference, labels: Sequence[str] | None = None) -> PreTrainedConfig:
    """Return the configuration, with the labels and the padding token that classification needs."""
    arguments = hub_arguments(reference, section)
    with one_line_errors(reference, "read"):
        _refuse_adapter(reference, arguments["local_files_only"])
        config = _read_plain(section, reference)
    task = TASKS[section.task]
    if type(config) not in auto_class(task)._model_mapping and not section.trust_remote_code:
        raise ModelError(
            f"model {reference.label!r}: transformers has no {section.task} model of type {config.model_type!r}"
        )
    if config.model_type in NEEDS_MORE:
        raise ModelError(
            f"model {reference.label!r}: a {config.model_type} model reads {NEEDS_MORE[config.model_type]}; "
            "peftlab trains models that read rows of token ids"
        )
    task.fit_config(config, labels)
    return config


def read_own_classes(section: Model) -> tuple[str, ...]:
    """Return the classes that a model's own head was trained on, in the order of its outputs; empty without names.

    Names such as LABEL_0 say nothing. Raises ModelError.
    """
    if section.init == "random":
        return ()
    reference = resolve(section.name, section.revision)
    with one_line_errors(reference, "read"):
        names: dict[Any, str] = dict(_read_plain(section, reference).id2label or {})
    ordered = tuple(str(names[number]) for number in range(len(names)) if number in names)
    unnamed = all(name == f"LABEL_{number}" for number, name in enumerate(ordered))
    return () if unnamed or len(ordered) != len(names) else ordered


def _read_plain(section: Model, reference: Reference) -> PreTrainedConfig:
    if reference.gguf_file and reference.folder:
        file = reference.folder / reference.gguf_file
        return copy.deepcopy(_read_gguf(file, file.stat().st_mtime_ns))
    config: PreTrainedConfig = AutoConfig.from_pretrained(reference.source, **hub_arguments(reference, section))
    return config


def _refuse_adapter(reference: Reference, local: bool) -> None:
    """Raise ModelError for an adapter: transformers would download the base model that it names."""
    if find_adapter_config_file(reference.source, revision=reference.revision, local_files_only=local):
        raise ModelError(
            f"model {reference.label!r} is an adapter (it has an adapter_config.json), not a model; set model.name to "
            "its base model, if you trust that"
        )


@functools.lru_cache(maxsize=4)
def _read_gguf(file: Path, modified_ns: int) -> PreTrainedConfig:
    """Return a GGUF file's configuration, cached, since its vocabulary is parsed too, which takes seconds."""
    return AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name, local_files_only=True)


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
