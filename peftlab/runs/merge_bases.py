"""Merging a run into each base that is tried, and the choice of the one that is nearest to the trained model."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from peftlab.errors import StorageError, UsageError, listed
from peftlab.methods import Method
from peftlab.models.config import auto_class
from peftlab.models.load import load_model, load_saved_tokenizer
from peftlab.recipe.schema import Recipe
from peftlab.reports import AgreementReport, MergeReport
from peftlab.runs.bench import Bench
from peftlab.runs.gate import TOLERANCES, Gate, open_gate
from peftlab.runs.loading import fill_trained
from peftlab.runs.merge_memory import MergeMeter
from peftlab.runs.merge_shards import Shards
from peftlab.runs.merge_whole import write_whole
from peftlab.runs.save import save_tokenizer

GENERATION = "generation_config.json"


def list_bases(method: Method, base: str, *, compared: bool) -> list[str]:
    """Return the bases to try: one, but for a quantised base of which the better is to be found."""
    if method.base_format == "plain":
        if base not in ("auto", "original"):
            raise UsageError(f"--base {base}: {method.title} was trained on plain weights; remove this option")
        return ["original"]
    if base != "auto":
        return [base]
    return ["dequantised", "original"] if compared else ["dequantised"]


@dataclass
class Merging:
    """A run's merging, by shards where that is possible.

    The bench is there where models are built, the gate where they are compared. `meter` measures each phase.
    """

    recipe: Recipe
    weights: Path
    dtype: torch.dtype
    shards: dict[str, Shards | None]
    meter: MergeMeter
    bench: Bench | None = None
    gate: Gate | None = None
    model: nn.Module | None = None

    @property
    def type_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def load(self, bench: Bench, rows: int) -> None:
        """Build the trained model, and observe base and trained model on `rows` rows."""
        self.bench = bench
        if rows:
            self.gate, self.model = open_gate(bench, self.weights, rows, bench.precision)
        else:
            self.model = fill_trained(self.recipe, bench.base, self.weights, bench.device)
        if all(self.shards.values()):  # then nothing is made of the model itself
            _free(self.model)

    def write_best(self, folder: Path, tolerance: float | None) -> MergeReport:
        """Write the merged model whose outputs are nearest to the trained one's, checked against its limit."""
        agreements: dict[str, AgreementReport] = {}
        tensors: dict[str, dict[str, int]] = {}
        for base in self.shards:
            with self.meter.phase("write"):
                tensors[base] = self._write(base, folder / base)
            if self.gate:
                with self.meter.phase("compare"):
                    agreements[base] = self.gate.compare(self.read(folder / base))
        best = min(agreements, key=lambda name: agreements[name].rms) if agreements else next(iter(self.shards))
        limit = self._check(agreements[best], tolerance) if agreements else None
        _keep(folder, best, list(self.shards))
        return MergeReport(
            run="",
            folder="",
            dtype=self.type_name,
            base=best,
            tensors=tensors[best],
            part=self.gate.part if self.gate else None,
            effect=self.gate.effect if self.gate else None,
            limit=limit,
            agreements=agreements,
        )

    def _check(self, found: AgreementReport, tolerance: float | None) -> float:
        assert self.gate is not None, "a model was compared"
        limit = self.gate.limit(TOLERANCES[self.type_name], tolerance)
        remedy = f"Try --dtype float32 (here {self.type_name}), or allow more with --tolerance, a part of what "
        self.gate.check(found, limit, "the merged model", f"{remedy}training changed")
        return limit

    def _write(self, base: str, folder: Path) -> dict[str, int]:
        """Write one merged model and return how many of its tensors were merged, trained, copied or unpacked."""
        folder.mkdir()
        shards = self.shards[base]
        counts = self._write_whole(base, folder) if shards is None else shards.write(folder, self.dtype)
        save_tokenizer(load_saved_tokenizer(self.weights, self.recipe.model), folder)
        if (ends := self.weights / GENERATION).is_file():
            shutil.copy(ends, folder / GENERATION)
        return counts

    def _write_whole(self, base: str, folder: Path) -> dict[str, int]:
        assert self.bench is not None and self.model is not None, "a model that is not merged by shards is built"
        method, plain = self.recipe.method, None
        if base == "original" and method.base_format != "plain":
            section, labels = self.recipe.model, self.bench.dataset.labels
            plain = load_model(section, device=self.bench.device, labels=labels).model
        return write_whole(self.model, method, plain, folder, self.dtype)

    def read(self, folder: Path) -> PreTrainedModel:
        """Return the folder's model as transformers alone reads it. Raises StorageError where tensors do not fit."""
        loaded: Any = auto_class(self.recipe.task).from_pretrained(
            folder, dtype=self.dtype, local_files_only=True, output_loading_info=True
        )
        model, found = loaded
        wrong = sorted({*found["missing_keys"], *found["unexpected_keys"], *map(str, found["mismatched_keys"])})
        if wrong:
            raise StorageError(
                f"the merged folder is not a plain {type(model).__name__}: {listed(wrong[:3])} would be lost; use the "
                "run's folder `weights` with peftlab"
            )
        assert self.bench is not None, "a folder is read to be observed"
        return model.to(self.bench.device)


def _free(model: nn.Module) -> None:
    """Free the memory of a model that nothing uses again, whatever still has a reference to it."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.new_empty(0)


def _keep(folder: Path, best: str, bases: Sequence[str]) -> None:
    """Move the files of the best base into `folder`, and remove those of the others."""
    for base in bases:
        if base == best:
            for file in (folder / base).iterdir():
                file.rename(folder / file.name)
        shutil.rmtree(folder / base)
