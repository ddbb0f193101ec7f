"""The arguments of transformers' Trainer, which the configurations of TRL and LLaMA-Factory have too."""

from __future__ import annotations

from typing import Any

from peftlab.conversion.names import take_optimizer, take_precision, take_schedule
from peftlab.conversion.sheet import Sheet, is_off

SHOWN = "what is shown and where"
SPEED = "speed, not the result"
UPLOAD = "no upload; `peftlab push` makes one"
IGNORED = {
    "logging_*": SHOWN,
    "run_name": SHOWN,
    "project": SHOWN,
    "log_level*": SHOWN,
    "disable_tqdm": SHOWN,
    "plot_loss": SHOWN,
    "include_*": SHOWN,
    "overwrite_output_dir": "nothing is overwritten",
    "output_dir": "run.output is `runs/NAME` by default",
    "do_train": "`peftlab train` trains",
    "do_eval": "data.evaluation decides",
    "dataloader_*": SPEED,
    "ddp_*": SPEED,
    "deepspeed": "how memory is shared by devices: `peftlab launch --strategy`",
    "fsdp*": "how memory is shared by devices: `peftlab launch --strategy`",
    "accelerator_config": "how devices are used",
    "torch_compile*": SPEED,
    "tf32": SPEED,
    "use_liger_kernel": SPEED,
    "liger_kernel_config": SPEED,
    "group_by_modality_length": "no pictures are read",
    "remove_unused_columns": "columns without a role are never read",
    "push_to_hub*": UPLOAD,
    "hub_*": UPLOAD,
    "save_safetensors": "always",
    "average_tokens_across_devices": "a step's loss is always the mean over all its targets",
    "eval_on_start": "an evaluation before training is always made",
    "save_only_model": "checkpoints contain what resuming needs",
    "gradient_checkpointing_kwargs": "the same gradients",
    "per_device_eval_batch_size": "",
    "full_determinism": "",
    "bf16_full_eval": "evaluation has the type of training",
    "fp16_full_eval": "evaluation has the type of training",
    "resume_from_checkpoint": "`peftlab train --resume` resumes its own checkpoints only",
}
# Asked for before a star of IGNORED takes them.
EXCEPTIONS = {"dataloader_drop_last": "the last rows of an epoch train too, in a smaller batch"}
MISSED = {
    "neftune_noise_alpha": "no noise is added to the embeddings",
    "label_smoothing_factor": "labels are not smoothed",
    "group_by_length": "batches are not grouped by length: rows come in another order",
    "length_column_name": "batches are not grouped by length",
    "lr_scheduler_kwargs": "the schedule has no settings of its own",
    "optim_args": "the optimiser keeps its own settings",
    "optim_target_modules": "the optimiser treats all parameters alike",
}


def take_trainer_arguments(
    sheet: Sheet,
    *,
    learning_rate: float = 5e-5,
    checkpointing: bool = False,
    precision: str | None = "float32",
    logging: int = 500,
) -> None:
    """Take the arguments of transformers' Trainer, with the defaults of a trainer that is derived from it."""
    take_steps(sheet)
    sheet.copy_number("per_device_train_batch_size", "training.batch_size", 8)
    sheet.copy_number("gradient_accumulation_steps", "training.gradient_accumulation")
    sheet.copy_number("learning_rate", "training.learning_rate", learning_rate)
    take_schedule(sheet, "lr_scheduler_type", "linear")
    take_optimizer(sheet, "optim")
    sheet.copy_number("weight_decay", "training.weight_decay")
    take_clip(sheet)
    take_precision(sheet, precision)
    if checkpointing or sheet.has("gradient_checkpointing"):
        sheet.copy_flag("gradient_checkpointing", "training.gradient_checkpointing", checkpointing)
    take_records(sheet, logging)
    sheet.copy_number("seed", "run.seed")
    sheet.copy_number("data_seed", "data.seed")
    sheet.copy_number("per_device_eval_batch_size", "evaluation.batch_size")
    sheet.copy_flag("full_determinism", "run.deterministic")
    sheet.miss_all(EXCEPTIONS)
    sheet.ignore_all({key: why for key, why in IGNORED.items() if why})
    sheet.miss_all(MISSED)


def take_steps(sheet: Sheet) -> None:
    """Take the length of training: `max_steps` above 0 has priority over epochs, 3 by default."""
    steps = sheet.number("max_steps", -1)
    if steps > 0:
        sheet.take("max_steps", "training.steps", int(steps))
        sheet.ignore("num_train_epochs", "max_steps has priority")
    else:
        sheet.ignore("max_steps", "none")
        sheet.copy_number("num_train_epochs", "training.epochs", 3.0)


def take_clip(sheet: Sheet, key: str = "max_grad_norm") -> None:
    value = sheet.number(key)
    if value is not None:
        sheet.take(key, "training.clip", float(value) if value else None)


def take_records(sheet: Sheet, logging: int) -> None:
    """Take when checkpoints and evaluations are made, and the trackers; evaluations are as often as logs are there."""
    take_every(sheet, ("save_strategy",), "save_steps", "run.save_every", "steps", 500)
    every = sheet.number("logging_steps", logging)
    take_every(sheet, ("eval_strategy", "evaluation_strategy"), "eval_steps", "evaluation.every", "no", every)
    sheet.copy_number("save_total_limit", "run.keep_checkpoints")
    if sheet.on("load_best_model_at_end") and sheet.peek("evaluation.every"):
        sheet.take("load_best_model_at_end", "run.keep", "best")
    elif sheet.on("load_best_model_at_end"):
        sheet.miss("load_best_model_at_end", "the last step is kept; set evaluation.every, then run.keep = best")
    sheet.ignore_all({"load_best_model_at_end": "off", "greater_is_better": "known of every metric"})
    if sheet.get("metric_for_best_model") in ("loss", "eval_loss"):
        sheet.take("metric_for_best_model", "evaluation.best", "loss")
    sheet.miss_all({"metric_for_best_model": "evaluation.best = loss instead: another step may be the best"})
    take_trackers(sheet)


def take_every(
    sheet: Sheet, strategies: tuple[str, ...], steps_key: str, where: str, default: str, every: Any = None
) -> None:
    """Take a number of steps where the strategy is steps; an epoch's is not known before the rows are.

    `every` is theirs where the file names the strategy only.
    """
    strategy_key = next((key for key in strategies if key in sheet.values), strategies[0])
    strategy = "no" if sheet.values.get(strategy_key) is False else str(sheet.get(strategy_key, default))
    steps = sheet.number(steps_key, every if sheet.has(strategy_key) and strategy == "steps" else None)
    if strategy == "epoch":
        sheet.miss(strategy_key, f"an epoch's steps depend on the rows; set {where} to their number")
    elif strategy == "best":
        sheet.miss(strategy_key, f"set {where} to a number of steps; the best step's checkpoint is kept too")
    else:
        sheet.ignore(strategy_key, f"{where} decides")
    if steps is None and strategy == "steps" and sheet.has(strategy_key):
        sheet.miss(steps_key, f"their number of steps is not in the file; set {where}")
    if steps is None:
        return
    if strategy != "steps":
        sheet.ignore(steps_key, f"{strategy_key} is {strategy}")
    elif steps < 1:
        sheet.miss(steps_key, f"a fraction of all steps; set {where} to a number of steps")
    else:
        sheet.take(steps_key, where, int(steps))


def take_trackers(sheet: Sheet) -> None:
    value = sheet.get("report_to")
    names = list(value) if isinstance(value, list | tuple) else [value] if value else []
    if names == ["all"]:
        sheet.miss("report_to", "no tracker is used; name them in run.trackers")
    elif names and not is_off(names[0]):
        sheet.take("report_to", "run.trackers", names)
    else:
        sheet.ignore("report_to", "none")
