"""A comparison written as results of PEFT's method comparison (MetaMathQA): a JSON file for each finished run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any

from peftlab import __version__
from peftlab.comparison.folder import RUNS
from peftlab.comparison.jobs import slug
from peftlab.comparison.peft_bench import ACCURACIES, SUCCESS
from peftlab.comparison.rows import Row, Table
from peftlab.comparison.trials import Trial
from peftlab.errors import StorageError, UsageError, one_line
from peftlab.files import decode_json, write_atomically
from peftlab.reports import RunResult

MEASURED = (
    "accelerator_memory_max is the measured peak of tensor bytes; the average and the 99th percentile are not "
    "measured, and the peak of steady steps stands for both"
)
MARK = "peftlab"  # the key of what no other such file says
PACKAGES = ("transformers", "peft", "datasets", "bitsandbytes", "torch")


def write_results(table: Table, folder: Path, notes: list[str]) -> list[Path]:
    """Write every finished run at the chosen settings as a file of PEFT's comparison, and return the files.

    Their accuracy is the comparison's metric, if that is one. A run without it has no file, and adds a line to
    `notes`; a run of two variants that are equal has one for each. Files of an earlier export whose runs are gone are
    deleted. Raises UsageError for a comparison without an accuracy, and StorageError for a record that lacks what such
    a file says.
    """
    runs = [(row, trial) for row in table.rows for trial in row.finished]
    known = [name for name in ACCURACIES if any(trial.has_value(name, row.tested) for row, trial in runs)]
    if not known:
        raise UsageError(
            f"--export peft-bench: its files have an accuracy, and these runs have none; compare with --metric "
            f"{' or '.join(ACCURACIES)}"
        )
    metric = table.metric if table.metric in known else known[0]
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for row, trial in runs:
        if _test_metrics(trial).get(metric) is None or not trial.has_value(metric, row.tested):
            notes.append(f"--export peft-bench: {trial.report.run} has no {metric} and is left out")
            continue
        path = folder / f"{trial.report.run}.json"
        if path in written:
            path = path.with_name(f"{trial.report.run}-{slug(row.label)}.json")
        _write_result(path, row, trial, metric, table.folder / RUNS / trial.report.run / "result.json")
        written.append(path)
    for path in sorted(set(folder.glob("*.json")) - set(written)):
        if _is_exported(path):
            path.unlink()
    return written


def _is_exported(path: Path) -> bool:
    """Return whether a file is one that an export wrote: it names peftlab, as no file of PEFT's does."""
    if path.is_symlink() or not path.is_file():
        return False
    try:
        return MARK in decode_json(path.read_bytes())["meta_info"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write_result(path: Path, row: Row, trial: Trial, metric: str, record: Path) -> None:
    try:
        text = json.dumps(describe_run(row, trial, metric, record), indent=2, allow_nan=False)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise StorageError(f"{record}: is damaged: {one_line(f'{type(error).__name__}: {error}', 80)}") from None
    write_atomically(path, text + "\n")


def _test_metrics(trial: Trial) -> Mapping[str, Any]:
    return trial.metrics.get("test_after", trial.metrics.get("after", {}))


def describe_run(row: Row, trial: Trial, metric: str, record: Path) -> dict[str, Any]:
    """Return one finished run with the keys of PEFT's comparison; `record` is the file of its result."""
    result = trial.result
    assert result is not None, "a finished run has a result"
    return {
        "run_info": {
            "created_at": _created(record, result),
            "total_time": result.seconds.get("total", 0.0),
            "experiment_name": f"{row.variant.method}/{row.label}-seed-{trial.report.seed}",
            "peft_branch": f"peftlab-{__version__}",
            "train_config": _train_config(result.recipe),
            "peft_config": _peft_config(row, result),
            "error_msg": "",
        },
        "train_info": _train_info(trial, result, metric),
        "meta_info": _meta_info(result),
    }


def _created(record: Path, result: RunResult) -> str:
    """Return when the run began, by the time of its record and the seconds that it took."""
    ended = record.stat().st_mtime if record.exists() else 0.0
    return datetime.fromtimestamp(ended - result.seconds.get("total", 0.0), UTC).isoformat(timespec="seconds")


def _train_config(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the training's settings under the names of PEFT's comparison; a setting that it lacks is left out."""
    model, data, training, evaluation = (recipe[name] for name in ("model", "data", "training", "evaluation"))
    optimizer = dict(training["optimizer"])
    kind = optimizer.pop("type")
    return {
        "model_id": model["name"],
        "dtype": model["dtype"],
        "max_seq_length": data["max_length"],
        "batch_size": training["batch_size"] * training["gradient_accumulation"],
        "batch_size_eval": evaluation["batch_size"] or training["batch_size"],
        "max_steps": training["steps"],
        "eval_steps": evaluation["every"],
        "compile": False,
        "use_gc": training["gradient_checkpointing"],
        "query_template": data["template"],
        "seed": recipe["run"]["seed"],
        "grad_norm_clip": training["clip"] or 0.0,
        "optimizer_type": kind,
        "optimizer_kwargs": {"lr": training["learning_rate"], "weight_decay": training["weight_decay"], **optimizer},
        "lr_scheduler": training["schedule"],
        "use_amp": training["precision"] in ("bfloat16", "float16"),
        "autocast_adapter_dtype": True,
        "generation_kwargs": evaluation["generation"],
        "attn_implementation": model["attention"],
        "init_kv_cache_prefix": None,
    }


def _peft_config(row: Row, result: RunResult) -> dict[str, Any] | None:
    """Return the method's fields; None where all parameters are trained, as in PEFT's comparison."""
    if result.parameters is not None and result.parameters.fraction == 1:
        return None
    return {"peft_type": row.variant.method.upper(), **result.recipe["method"]}


def _train_info(trial: Trial, result: RunResult, metric: str) -> dict[str, Any]:
    """Return what the run took and measured. Averages of memory are not measured: the peaks stand for them."""
    parameters, measured = result.parameters, result.memory.get("measured")
    peak = measured.peak_bytes if measured else 0
    steady = measured.phases.get("steady_step", peak) if measured else 0
    return {
        "accelerator_memory_reserved_avg": steady,
        "accelerator_memory_max": peak,
        "accelerator_memory_reserved_99th": steady,
        "train_time": result.seconds.get("training", 0.0),
        "file_size": parameters.stored_bytes if parameters else 0,
        "num_trainable_params": parameters.trainable if parameters else 0,
        "num_total_params": parameters.total if parameters else 0,
        "status": SUCCESS,
        "metrics": [_json_numbers(one) for one in (*_history(trial, metric), _last(trial, result, metric))],
    }


def _json_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with null for NaN and the infinite, which JSON lacks."""
    return {name: None if isinstance(value, float) and not isfinite(value) else value for name, value in values.items()}


def _history(trial: Trial, metric: str) -> Iterator[dict[str, Any]]:
    """Yield the evaluations during training, each with the training loss that was logged last."""
    loss = None
    for line in trial.history:
        if line["event"] == "train":
            loss = line.get("loss")
        elif line["step"] and metric in line:
            yield {"step": line["step"], "valid accuracy": line[metric], "train loss": loss}


def _last(trial: Trial, result: RunResult, metric: str) -> dict[str, Any]:
    """Return the result after training: accuracy on the rows that report, and how much general text was forgotten."""
    losses = [line["loss"] for line in trial.history if line["event"] == "train" and line.get("loss") is not None]
    before, after = (trial.metrics.get(f"general_{when}", {}).get("loss") for when in ("before", "after"))
    found = {
        "step": result.progress.step,
        "test accuracy": _test_metrics(trial)[metric],
        "train loss": losses[-1] if losses else None,
        "train samples": result.progress.rows,
        "train total tokens": result.progress.tokens,
    }
    return found | ({"forgetting": after - before} if before is not None and after is not None else {})


def _meta_info(result: RunResult) -> dict[str, Any]:
    """Return the software and the machine, and what of the file is not what its name says."""
    versions = result.environment.get("versions", {})
    packages = {f"{name}-version": versions.get(name) for name in PACKAGES}
    return {
        "model_info": {"sha": None, "created_at": None},
        "dataset_info": {str(result.recipe["data"]["train"]): {"sha": None, "created_at": None}},
        "package_info": packages | {f"{name}-commit-hash": None for name in PACKAGES},
        "system_info": {
            "system": result.environment.get("platform", ""),
            "accelerator": result.environment.get("device", ""),
        },
        "pytorch_info": "",
        MARK: {
            "version": versions.get("peftlab", __version__),
            "notes": [
                MEASURED if "measured" in result.memory else "memory was not measured: its 0 bytes are not known"
            ],
        },
    }
