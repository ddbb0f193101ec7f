"""What a name refers to (a run, its base, a plain folder, a GGUF file), and how far two models are from each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peftlab.errors import ModelError, StorageError, UsageError, listed
from peftlab.export.gguf_families import as_read
from peftlab.export.gguf_model import other_sizes
from peftlab.files import decode_json
from peftlab.models.config import auto_class, one_line_errors
from peftlab.models.gguf import forget_parsed
from peftlab.models.load import fit_tokenizer
from peftlab.models.reference import Reference
from peftlab.reports import AgreementReport
from peftlab.runs.bench import Bench
from peftlab.runs.directory import MARKER, RunDirectory
from peftlab.runs.gate import ROWS, open_bench
from peftlab.runs.launch import launched
from peftlab.runs.loading import load_base, load_trained
from peftlab.runs.merge import RECORD as MERGED
from peftlab.runs.observer import Observer
from peftlab.runs.reopen import run_labels
from peftlab.runs.use import open_run
from peftlab.world.open import open_world
from peftlab.world.quiet import quiet_libraries

BASE = "base"
EXPORTED = "export.json"


@dataclass(frozen=True)
class Compared:
    """Two models on the same rows of a run: `part` are the rows, `agreement` how far the second is from the first."""

    first: str
    second: str
    run: str
    part: str
    agreement: AgreementReport


def compare_weights(
    first: str,
    second: str,
    *,
    run: Path | None = None,
    rows: int = ROWS,
    verify: bool = True,
    overrides: Sequence[str] = (),
) -> Compared:
    """Return how far two models are from each other on the held-out rows of a run, in float32.

    Each is the directory of a run, `base` (that of the run), a folder of transformers, or a GGUF file. The run whose
    rows are used is `run`, or the first that they name or were made of; `overrides` change its recipe. Raises
    UsageError where there is none.
    """
    quiet_libraries()
    found = run or find_run(first) or find_run(second)
    if found is None:
        raise UsageError("neither is a run or was made from one by peftlab; name the run whose rows to use with --run")
    directory, recipe = open_run(found, overrides, verify)
    world = open_world(recipe.run.device)
    with launched(world):
        observer = Observer(open_bench(directory, recipe, world, rows), rows)
        outputs = [observer.observe(open_weights(name, directory, observer.bench)) for name in (first, second)]
    if outputs[0].logits.shape != outputs[1].logits.shape:
        sizes = " and ".join(f"{one.logits.shape[-1]:,}" for one in outputs)
        raise ModelError(f"{first} and {second} have {sizes} classes, so that they cannot be compared")
    return Compared(first, second, str(found), observer.part, observer.compare(*outputs))


def find_run(name: str) -> Path | None:
    """Return the run that a name is, or that peftlab made it of; None where nothing says so."""
    path = Path(name)
    if (path / MARKER).is_file():
        return path
    folder = path if path.is_dir() else path.parent
    for record in (MERGED, EXPORTED):
        try:
            made_of = Path(decode_json((folder / record).read_bytes())["run"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if (made_of / MARKER).is_file():
            return made_of
    return None


def open_weights(name: str, directory: RunDirectory, bench: Bench) -> nn.Module:
    """Return the model that a name refers to. Raises UsageError for one that refers to none."""
    path = Path(name)
    if name == BASE and not path.exists():
        return load_base(bench.recipe, bench.device, bench.dataset.labels).model
    openers: list[tuple[bool, Callable[[], nn.Module]]] = [
        ((path / MARKER).is_file(), lambda: _open_run(path, directory, bench)),
        (path.suffix == ".gguf" and path.is_file(), lambda: open_gguf(path, bench)),
        (path.is_dir() and any(path.glob("*.gguf")), lambda: open_gguf(next(iter(sorted(path.glob("*.gguf")))), bench)),
        ((path / "config.json").is_file(), lambda: _open_folder(path, bench)),
    ]
    for fits, opener in openers:
        if fits:
            return opener()
    raise UsageError(f"{name} is not a run, a folder of transformers or a .gguf file; `base` is the run's base")


def _open_run(path: Path, rows_of: RunDirectory, bench: Bench) -> nn.Module:
    directory, recipe = open_run(path, ())
    if path.resolve() == rows_of.path.resolve():
        recipe = bench.recipe  # with the overrides
    labels = run_labels(directory.weights, directory.read_result())
    return load_trained(recipe, directory.weights, bench.device, labels)


def _open_folder(path: Path, bench: Bench) -> nn.Module:
    """Return the model in a folder of transformers, which would make weights that the folder lacks at random."""
    with one_line_errors(Reference(label=str(path), folder=path), "read"):
        loaded: Any = auto_class(bench.recipe.task).from_pretrained(
            path, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    model, found = loaded
    _refuse_lacking(path, found)
    fit_tokenizer(model, bench.tokenizer)
    return model.to(bench.device)


def open_gguf(path: Path, bench: Bench) -> nn.Module:
    """Return the model in a GGUF file, with the config of the run's base: the file has no place for all of it.

    Raises ModelError for a file of another model, StorageError where it lacks a tensor.
    """
    config = bench.base.model.config
    if wrong := other_sizes(path, config):
        name, (there, here) = next(iter(wrong.items()))
        raise ModelError(f"{path}: it is of another model than the run's: its {name} is {there}, the run's {here}")
    return read_gguf(path, as_read(config), bench.recipe.task).to(bench.device)


def read_gguf(path: Path, config: Any, task: Any) -> nn.Module:
    """Return the model in a GGUF file as transformers reads it with a config.

    Raises StorageError where the file lacks a tensor, ModelError where it cannot be read.
    """
    with one_line_errors(Reference(label=str(path), folder=path.parent, gguf_file=path.name), "read"):
        loaded: Any = auto_class(task).from_pretrained(
            path.parent, gguf_file=path.name, config=config, dtype=torch.float32, output_loading_info=True
        )
    forget_parsed()
    model, found = loaded
    _refuse_lacking(path, found)
    return model


def _refuse_lacking(path: Path, found: dict[str, Any]) -> None:
    """Raise StorageError where a file has no tensor for a weight, which would be random."""
    if lacking := sorted(found["missing_keys"]):
        raise StorageError(f"{path}: it lacks {listed(lacking, 3)}")
