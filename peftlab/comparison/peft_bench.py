"""Results of PEFT's method comparison (MetaMathQA): its JSON files read beside a comparison, and a comparison as such.

Its keys: https://github.com/huggingface/peft/tree/main/method_comparison. A file is one run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peftlab import __version__
from peftlab.comparison.folder import RUNS
from peftlab.comparison.rows import Row, Table
from peftlab.comparison.trials import Trial
from peftlab.errors import StorageError, UsageError, one_line
from peftlab.files import parse_json, read_text, write_atomically
from peftlab.reports import RunResult

SUCCESS = "success"
FULL = "full fine-tuning"
# Of our metrics, those that its accuracy is: the share of answers that are right.
ACCURACIES = ("exact_match", "accuracy")
LARGEST = 1e18  # a larger number in such a file is a fault, as NaN is
PACKAGES = ("transformers", "peft", "datasets", "bitsandbytes", "torch")


@dataclass(frozen=True)
class BenchResult:
    """One imported run: what it trained, took and reached. Memory is reserved by the device's allocator at most."""

    name: str
    method: str
    model: str
    trainable: int | None
    stored_bytes: int
    memory_bytes: int
    seconds: float
    accuracy: float
    forgetting: float | None
    created: str


def read_results(paths: Iterable[Path], notes: list[str]) -> list[BenchResult]:
    """Return the results in files, and in the files of folders: of runs of one experiment the latest.

    Runs that did not succeed add a line to `notes`. Raises StorageError for another kind of file.
    """
    latest: dict[tuple[str, str, str], BenchResult] = {}
    for path in _files(paths):
        found = read_result(path, notes)
        if found is None:
            continue
        key = (found.name, found.model, found.method)
        if key not in latest or found.created >= latest[key].created:
            latest[key] = found
    return sorted(latest.values(), key=lambda one: (-one.accuracy, one.name))


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            inside = sorted(path.glob("*.json"))
            if not inside:
                raise StorageError(f"--import {path}: the folder has no .json file")
            yield from inside
        else:
            yield path


def read_result(path: Path, notes: list[str]) -> BenchResult | None:
    """Return the result in a file; None, with a note, of a run that did not succeed."""
    if not path.is_file():
        raise StorageError(f"--import {path}: the file does not exist")
    values = _Values(path, parse_json(path, read_text(path)))
    status = values.get("train_info.status", str)
    if status != SUCCESS:
        notes.append(f"{path}: the run's status is {status!r}; it is left out")
        return None
    metrics = values.get("train_info.metrics", list)
    last = _Values(path, metrics[-1] if metrics else {}, "train_info.metrics[-1].")
    config = values.get("run_info.peft_config", dict, None)
    return BenchResult(
        name=values.get("run_info.experiment_name", str),
        method=FULL if config is None else _Values(path, config, "run_info.peft_config.").get("peft_type", str),
        model=values.get("run_info.train_config.model_id", str),
        trainable=values.get("train_info.num_trainable_params", int, None),
        stored_bytes=values.get("train_info.file_size", int),
        memory_bytes=values.get("train_info.accelerator_memory_max", int),
        seconds=float(values.get("train_info.train_time", float)),
        accuracy=float(last.get("test accuracy", float)),
        forgetting=last.get("forgetting", float, None),
        created=values.get("run_info.created_at", str),
    )


REQUIRED = object()


class _Values:
    """The values of a file by key path; one that is missing or of another type is an error with its place."""

    def __init__(self, path: Path, values: Any, place: str = ""):
        self.path, self.values, self.place = path, values, place

    def get(self, key: str, kind: type, default: Any = REQUIRED) -> Any:
        value = self.values
        for part in [key] if self.place else key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is None and default is not REQUIRED:
            return default
        right = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
        if not right or (kind in (int, float) and not abs(value) < LARGEST):
            what = "is missing" if value is None else f"is {one_line(json.dumps(value), 60)}"
            raise StorageError(
                f"{self.path}: {self.place}{key} {what}; a result of PEFT's method comparison has "
                f"{'a number' if kind in (int, float) else f'a {kind.__name__}'} there"
            )
        return value


def write_results(table: Table, folder: Path) -> list[Path]:
    """Write every finished run at the chosen settings as a file of PEFT's comparison, and return the files.

    A run without an accuracy has no file. Raises UsageError for a comparison that has none, and StorageError for a
    record that lacks what such a file says.
    """
    runs = [(row, trial) for row in table.rows for trial in row.finished]
    metric = next((name for name in ACCURACIES if any(trial.has_value(name, row.tested) for row, trial in runs)), None)
    if metric is None:
        raise UsageError(
            f"--export peft-bench: its files have an accuracy, and these runs have none; compare with --metric "
            f"{' or '.join(ACCURACIES)}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for row, trial in runs:
        if _test_metrics(trial).get(metric) is None or not trial.has_value(metric, row.tested):
            continue
        path, record = folder / f"{trial.report.run}.json", table.folder / RUNS / trial.report.run / "result.json"
        try:
            described = describe_run(row, trial, metric, record)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise StorageError(f"{record}: is damaged: {one_line(f'{type(error).__name__}: {error}', 80)}") from None
        write_atomically(path, json.dumps(described, indent=2) + "\n")
        written.append(path)
    return written


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
        "metrics": [*_history(trial, metric), _last(trial, result, metric)],
    }


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
        "peftlab": {
            "version": versions.get("peftlab", __version__),
            "notes": [
                "accelerator_memory_max is the measured peak of tensor bytes; the average and the 99th percentile are "
                "not measured, and the peak of steady steps stands for both"
            ],
        },
    }
