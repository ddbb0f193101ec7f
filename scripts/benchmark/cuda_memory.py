"""Predicted memory against measured: see scripts/check_cuda_memory."""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from results_file import require_cuda, write_result

from peftlab.errors import OutOfMemoryError
from peftlab.methods import METHODS
from peftlab.recipe.load import load_recipe
from peftlab.runs.display import NoDisplay
from peftlab.runs.dry_run import dry_run

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "memory-savings"
STEPS = ("first_step", "steady_step")
ROWS = 8
TOLERANCE = 0.05


def write_rows(folder: Path, length: int) -> Path:
    """Write rows of text that are all longer than `length` tokens."""
    path = folder / f"rows-{length}.jsonl"
    row = json.dumps({"text": "one row of many words " * length})
    path.write_text((row + "\n") * ROWS, encoding="utf-8")
    return path


def check_case(shape: str, method: str, checkpointing: bool, length: int, device: str, folder: Path) -> dict[str, Any]:
    """Return what one recipe was predicted to take in its steps, and what was measured."""
    overrides = [
        f"model.name={RECIPES / 'shapes' / shape}",
        "data.format=text",
        f"data.train={write_rows(folder, length)}",
        "data.evaluation=null",
        "data.evaluation_rows=null",
        f"data.max_length={length}",
        "training.batch_size=1",
        f"training.gradient_checkpointing={str(checkpointing).lower()}",
        f"run.device={device}",
        "run.plan=report",
    ]
    case = {"shape": shape, "method": method, "checkpointing": checkpointing, "length": length}
    try:
        report = dry_run(load_recipe(RECIPES / f"{method}.yaml", overrides), rows=0, display=NoDisplay())
    except OutOfMemoryError as error:
        return case | {"error": str(error).splitlines()[0]}
    finally:
        gc.collect()
        torch.cuda.empty_cache()
    predicted, measured = (report.memory[source] for source in ("predicted", "measured"))
    return case | {
        "predicted_bytes": max(predicted.phases[step] for step in STEPS),
        "measured_bytes": max(measured.phases[step] for step in STEPS),
        "predicted": predicted.model_dump(),
        "measured": measured.model_dump(),
    }


def show(case: dict[str, Any]) -> str:
    """Return one line under 80 columns."""
    kept = "checkpointed" if case["checkpointing"] else "kept"
    line = f"{case['shape']:<13} {case['method']:<9} {kept:<12} {case['length']:>6} "
    if "error" in case:
        return f"{line} {case['error'][:32]}"
    predicted, measured = (case[f"{source}_bytes"] / 2**20 for source in ("predicted", "measured"))
    return f"{line} {predicted:>10,.1f} {measured:>10,.1f} {predicted / measured - 1:>+7.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/check_cuda_memory")
    shapes = sorted(path.name for path in (RECIPES / "shapes").iterdir())
    parser.add_argument("--shape", nargs="+", choices=shapes, default=["llama-3.2-1b", "llama-3.1-8b"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 2048])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options = parser.parse_args()
    if options.device == "cuda":
        require_cuda(parser.prog)
    print(f"{'shape':<13} {'method':<9} {'activations':<12} {'length':>6}  {'predicted':>10} {'measured':>10}   error")
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        for shape in options.shape:
            for method in options.methods:
                for checkpointing in (False, True):
                    if checkpointing and not METHODS[method](type=method).supports_gradient_checkpointing:
                        continue
                    for length in options.lengths:
                        case = check_case(shape, method, checkpointing, length, options.device, Path(folder))
                        cases.append(case)
                        print(show(case), flush=True)
    errors = [abs(case["predicted_bytes"] / case["measured_bytes"] - 1) for case in cases if "error" not in case]
    within = sum(error <= TOLERANCE for error in errors)
    largest = max(errors, default=0)
    print(f"MiB in the steps; {within} of {len(errors)} within {TOLERANCE:.0%}, the largest error {largest:.1%}")
    if options.device == "cuda":
        found = {"cases": cases, "within_tolerance": within, "measured": len(errors)}
        name = f"check_cuda_memory-{'-'.join(options.shape)}"
        print(f"written: {write_result(name, torch.device('cuda'), found)}")
    else:
        print("tried on the CPU, against the tracker: nothing is written")
    if within < len(errors):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
