"""What the base scored before training, kept between runs: the same weights, rows and settings give the same figures.

Every run of a comparison begins with the same evaluation. The first one makes it, the others read it. A checkout with
changes, whose code nothing identifies, a base whose content is not known, and several processes measure anew.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from peftlab.data.dataset import Part
from peftlab.data.prompts import Prompt
from peftlab.data.token_rows import TokenRow
from peftlab.data.token_store import base_figures_folder
from peftlab.evaluation.evaluate import Evaluated
from peftlab.evaluation.texts import ScoredTexts
from peftlab.files import decode_json
from peftlab.metrics import RowScores
from peftlab.runs.bench import Bench
from peftlab.runs.kept import keep, name_of, note_use
from peftlab.runs.versions import library_version

ENVIRONMENT = ("python", "platform", "versions", "commit", "device", "repeatable", "threads")
# What compares generated texts with their references.
TEXT_LIBRARIES = ("sacrebleu", "rouge-score", "nltk")
# Of a recipe's evaluation, what does not change the figures of one evaluation.
NOT_COUNTED = {"every", "best", "patience", "latency"}
UNKNOWN_CODE = "with changes"


@dataclass
class BaseFigures:
    """The evaluation of a bench's base: read from what an earlier run kept, or made and to be kept.

    `path` is None where nothing is kept; `found` says whether an earlier run made it.
    """

    bench: Bench
    path: Path | None
    parts: dict[str, Evaluated] = field(default_factory=dict)
    examples: list[dict[str, str]] | None = None
    found: bool = False

    def evaluate(self, part: Part) -> Evaluated:
        """Return the base's metrics and scores on a part of the data."""
        if part not in self.parts:
            self.parts[part] = self.bench.evaluate(self.bench.base.model, part)
        return self.parts[part]

    def generate(self) -> list[dict[str, str]]:
        """Return the base's examples of generated text."""
        if self.examples is None:
            self.examples = self.bench.generate_examples(self.bench.base.model)
        return self.examples

    def keep(self) -> None:
        """Keep the figures for later runs; where that cannot be done they measure again."""
        if self.path is None or self.found:
            return
        dumped = {name: _dump(one) for name, one in self.parts.items()}
        keep(self.path, json.dumps({"parts": dumped, "examples": self.examples}) + "\n")


def open_base_figures(bench: Bench, environment: dict[str, Any]) -> BaseFigures:
    """Return the figures of a bench's base, as far as an earlier run has kept them."""
    drawn = bench.recipe.model.init == "random"
    known = drawn or bench.base.source.get("fingerprint") is not None
    if bench.world.processes > 1 or not known or UNKNOWN_CODE in str(environment["commit"]):
        return BaseFigures(bench, None)
    path = base_figures_folder() / f"{_name(bench, environment)}.json"
    try:
        kept = decode_json(path.read_bytes())
        parts = {name: _read(one) for name, one in kept["parts"].items()}
        figures = BaseFigures(bench, path, parts, kept["examples"], found=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return BaseFigures(bench, path)
    note_use(path)
    return figures


def _name(bench: Bench, environment: dict[str, Any]) -> str:
    """Return the name of all that the figures depend on."""
    recipe, dataset = bench.recipe, bench.dataset
    counted: dict[str, Any] = {"model": True, "evaluation": True, "training": {"speed", "precision"}}
    described = recipe.model_dump(mode="json", include=counted)
    for name in NOT_COUNTED:
        del described["evaluation"][name]
    depends = {
        "base": bench.base.source,
        "drawn": recipe.run.seed if bench.base.fresh or recipe.model.init == "random" else None,
        "recipe": described,
        "storage": recipe.method.base_storage,
        "prompting": repr(recipe.method.prompting),
        "types": bench.types.describe(),
        "batch_size": bench.batch_size,
        "rows": {part: _digest(*dataset.held_out(part)) for part in ("evaluation", "test", "general")},
        "labels": dataset.labels,
        "tokenizer": repr(bench.tokenizer),
        "comparing": {name: library_version(name) for name in TEXT_LIBRARIES},
        # Stop texts were once found across the end of a prompt: figures that were kept then are not those of today.
        "stops": [dataset.stop_ids, dataset.stop_texts, dataset.pad_id, "in answers alone"],
        "environment": {name: environment[name] for name in ENVIRONMENT},
    }
    return name_of(depends)


def _digest(rows: Sequence[TokenRow], prompts: Sequence[Prompt]) -> str:
    """Return the hash of the rows and prompts of one part."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(type(row).__name__.encode())
        for one in fields(row):
            value = getattr(row, one.name)
            digest.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
            digest.update(b"\0")
    for prompt in prompts:
        digest.update(repr(prompt).encode())
    return digest.hexdigest()


def _dump(found: Evaluated) -> dict[str, Any]:
    texts = found.texts
    return {
        "metrics": found.metrics,
        "undefined": found.undefined,
        "scores": found.scores and found.scores.dump(),
        "texts": texts and {"scores": texts.scores.dump(), "rows": texts.rows, "signatures": texts.signatures},
    }


def _read(stored: dict[str, Any]) -> Evaluated:
    texts = stored["texts"]
    return Evaluated(
        stored["metrics"],
        stored["undefined"],
        stored["scores"] and _read_scores(stored["scores"]),
        texts and ScoredTexts(_read_scores(texts["scores"]), texts["rows"], texts["signatures"]),
    )


def _read_scores(stored: dict[str, Any]) -> RowScores:
    sums = {
        name: [math.nan if value is None else value for value in column]
        for name, column in stored.get("sums", {}).items()
    }
    return RowScores(**stored | {"sums": sums})
