"""Axolotl's YAML (https://docs.axolotl.ai/docs/config-reference.html)."""

from __future__ import annotations

from typing import Any

from peftlab.conversion.axolotl_data import take_data
from peftlab.conversion.lora import HEADS, UNFREEZE, names_of, take_quantization, take_start, take_targets
from peftlab.conversion.names import (
    note_batch,
    take_attention,
    take_optimizer,
    take_precision,
    take_schedule,
)
from peftlab.conversion.peer import Peer
from peftlab.conversion.sheet import Sheet, dtype_name, is_off, is_on
from peftlab.conversion.trainer_arguments import EXCEPTIONS, SHOWN, SPEED, take_clip, take_every, take_trackers
from peftlab.conversion.trainer_arguments import IGNORED as OF_TRAINER
from peftlab.conversion.trainer_arguments import MISSED as MISSED_OF_TRAINER
from peftlab.errors import UsageError

IGNORED = {
    "model_type": "chosen by model.task",
    "tokenizer_type": "the model's own",
    "is_*_derived_model": "known from the model",
    "strict": "how the file is read",
    "dataset_prepared_path": "tokens have a cache of their own",
    "dataset_processes": SPEED,
    "dataset_num_proc": SPEED,
    "shuffle_merged_datasets": "rows are always shuffled",
    "lora_fan_in_fan_out": "known from the model",
    "pad_to_sequence_len": "padding has no effect on the loss",
    "sample_packing_*": "packing is decided by training.speed.packing",
    "eval_sample_packing": "no padding is computed in training; evaluation is the same with it",
    "multipack_real_batches": SPEED,
    "lora_*_kernel": SPEED,
    "lora_on_cpu": "where adapters are loaded",
    "lora_qkv_kernel": SPEED,
    "liger_*": SPEED,
    "flash_attn_*": SPEED,
    "unsloth_*": SPEED,
    "cut_cross_entropy": SPEED,
    "local_rank": "set by the launcher",
    "debug": SHOWN,
    "use_tensorboard": SHOWN,
    "wandb_*": SHOWN,
    "mlflow_*": SHOWN,
    "comet_*": SHOWN,
    "eval_table_size": SHOWN,
    "eval_max_new_tokens": SHOWN,
    "torch_compile*": SPEED,
    "deepspeed": "how memory is shared by devices: `peftlab launch --strategy`",
    "low_cpu_mem_usage": SPEED,
    "auto_resume_from_checkpoints": "`peftlab train --resume` resumes",
    "seed": "",
}
MISSED = {
    "lora_layers_to_transform": "all layers get an update",
    "peft_layers_to_transform": "all layers get an update",
    "peft": "PEFT's further settings are not used",
    "loraplus_lr_ratio": "A and B have the same learning rate",
    "loraplus_lr_embedding": "no other learning rate for embeddings",
    "relora*": "the adapter is not merged on the way",
    "noisy_embedding_alpha": "no noise is added to the embeddings",
    "special_tokens": "the tokenizer's own special tokens are used",
    "tokens": "no tokens are added: name them in model.add_tokens",
    "added_tokens_overrides": "no tokens are replaced",
    "unfrozen_parameters": "method.unfreeze has patterns for parameters; these are regular expressions",
    "overrides_of_model_config": "the model's own config is used",
    "overrides_of_model_kwargs": "the model's own settings are used",
    "evals_per_epoch": "an epoch's steps depend on the rows; set evaluation.every to a number of steps",
    "saves_per_epoch": "an epoch's steps depend on the rows; set run.save_every to a number of steps",
    "cosine_min_lr_ratio": "the learning rate falls to zero",
    "cosine_constant_lr_ratio": "the learning rate falls until the end",
    "embedding_lr*": "embeddings have no learning rate of their own",
    "lr_groups": "all parameters have one learning rate",
    "loss_watchdog_*": "only a loss that is not finite ends a run",
    "plugins": "no plugins are used; one that is only faster changes nothing",
    "curriculum_sampling": "rows are shuffled",
    "pretraining_dataset": "write it as data.train, with data.streaming and training.steps",
    "sequence_parallel_degree": "one device reads whole rows",
    "context_parallel_size": "one device reads whole rows",
    "dataset_exact_deduplication": "rows that occur twice stay",
    "default_system_message": "no system text is added",
    "gptq": "the base is loaded as it is",
}


def fill(sheet: Sheet) -> None:
    if sheet.has("rl") or sheet.on("reward_model") or sheet.on("process_reward_model"):
        raise UsageError(
            f"rl, reward_model: peftlab does supervised fine-tuning only, not {sheet.get('rl', 'reward models')}"
        )
    take_model(sheet)
    take_method(sheet)
    take_data(sheet)
    take_training(sheet)
    sheet.miss_all(EXCEPTIONS)
    sheet.ignore_all({key: why for key, why in (OF_TRAINER | IGNORED).items() if why})
    sheet.miss_all(MISSED | MISSED_OF_TRAINER)


def take_model(sheet: Sheet) -> None:
    sheet.copy("base_model", "model.name")
    sheet.copy("revision_of_model", "model.revision")
    sheet.ignore("base_model_config", "the model's own")
    if sheet.has("tokenizer_config") and sheet.get("tokenizer_config") != sheet.get("base_model"):
        sheet.miss("tokenizer_config", "the model's own tokenizer is used")
    sheet.ignore("tokenizer_config", "the model's own")
    sheet.copy_flag("trust_remote_code", "model.trust_remote_code")
    for key, name in (
        ("flash_attention", "flash_attention_2"),
        ("sdp_attention", "sdpa"),
        ("eager_attention", "eager"),
    ):
        if sheet.on(key):
            sheet.take(key, "model.attention", name)
        sheet.ignore(key, "off") if key not in sheet.done else None
    sheet.ignore("xformers_attention", "another implementation of the same attention")
    sheet.miss_all({"s2_attention": "attention is not shifted"})
    take_attention(sheet, "attn_implementation")


def take_method(sheet: Sheet) -> None:
    adapter = sheet.get("adapter")
    if adapter is None:
        sheet.take("adapter", "method.type", "full")
        reason = "no adapter"
        sheet.ignore_all({"lora_*": reason, "peft_*": reason, "qlora_*": reason})
        sheet.miss_all({"load_in_4bit": "the base is not quantised", "load_in_8bit": "the base is not quantised"})
        return
    if adapter not in ("lora", "qlora"):
        raise UsageError(f"adapter: {adapter!r} has no counterpart; peftlab has lora and qlora")
    four, eight = sheet.on("load_in_4bit"), sheet.on("load_in_8bit")
    if four or eight or adapter == "qlora":
        key = "load_in_8bit" if eight and not four else "load_in_4bit" if four else "adapter"
        take_quantization(sheet, 8 if eight and not four else 4, key)
    sheet.take("adapter", "method.type", "qlora" if sheet.peek("method.type") == "qlora" else "lora")
    sheet.ignore_all({"load_in_4bit": "off", "load_in_8bit": "off"})
    if sheet.peek("method.type") == "qlora" and isinstance(sheet.get("bnb_config_kwargs"), dict):
        take_bits(sheet, sheet.get("bnb_config_kwargs"))
    sheet.copy_number("lora_r", "method.rank")
    sheet.copy_number("lora_alpha", "method.alpha")
    sheet.copy_number("lora_dropout", "method.dropout")
    sheet.copy_flag("peft_use_rslora", "method.rslora")
    sheet.copy_flag("peft_use_dora", "method.dora")
    take_projections(sheet)
    if names := names_of(sheet.get("lora_modules_to_save")):
        sheet.take("lora_modules_to_save", "method.unfreeze", names, UNFREEZE)
    take_start(sheet, "peft_init_lora_weights")


def take_bits(sheet: Sheet, settings: dict[str, Any]) -> None:
    """Take bitsandbytes' own settings of four bits."""
    left, key = dict(settings), "bnb_config_kwargs"
    if sheet.peek("method.quantization") != "int8":
        if kind := left.pop("bnb_4bit_quant_type", None):
            sheet.take(key, "method.quantization", str(kind))
        if (double := left.pop("bnb_4bit_use_double_quant", None)) is not None:
            sheet.take(key, "method.double_quantization", is_on(double))
        if compute := left.pop("bnb_4bit_compute_dtype", None):
            sheet.take(key, "method.compute_dtype", dtype_name(compute))
    if left:
        sheet.miss(key, f"{', '.join(left)}: bitsandbytes' own values are used")


def take_projections(sheet: Sheet) -> None:
    sheet.copy("lora_model_dir", "method.from")
    names = names_of(sheet.get("lora_target_modules"))
    if not sheet.on("lora_target_linear"):
        sheet.ignore("lora_target_linear", "off")
        take_targets(sheet, "lora_target_modules")
        return
    sheet.take("lora_target_linear", "method.targets", "all-linear")
    if any(name in HEADS for name in names):
        sheet.miss("lora_target_modules", "the head gets no update: `method.unfreeze` trains it whole")
    elif names:
        sheet.ignore("lora_target_modules", "covered by all-linear")


def take_training(sheet: Sheet) -> None:
    steps = sheet.number("max_steps")
    if steps and steps > 0:
        sheet.take("max_steps", "training.steps", int(steps))
        sheet.ignore("num_epochs", "max_steps has priority")
    else:
        sheet.ignore("max_steps", "none")
        sheet.copy_number("num_epochs", "training.epochs", 1.0)
    sheet.copy_number("micro_batch_size", "training.batch_size", 1)
    take_accumulation(sheet)
    note_batch(sheet, sheet.number("world_size"))
    sheet.ignore("world_size", "`peftlab launch --processes` says how many")
    sheet.copy_number("learning_rate", "training.learning_rate")
    take_schedule(sheet, "lr_scheduler", "cosine")
    if not sheet.number("warmup_steps") and not sheet.has("warmup_ratio") and "warmup_steps" not in sheet.done:
        sheet.take("warmup_ratio", "training.warmup", 0.03, "at most 100 steps there")
    take_optimizer(sheet, "optimizer", "adamw_torch_fused")
    sheet.copy_number("weight_decay", "training.weight_decay")
    take_clip(sheet)
    take_pure(sheet)
    take_precision(sheet, "auto")
    if sheet.has("gradient_checkpointing"):
        value = not is_off(sheet.get("gradient_checkpointing"))
        sheet.take("gradient_checkpointing", "training.gradient_checkpointing", value)
    sheet.copy_number("seed", "run.seed")
    take_every(sheet, ("save_strategy",), "save_steps", "run.save_every", "steps", 500)
    evaluations = ("eval_strategy", "evaluation_strategy")
    take_every(sheet, evaluations, "eval_steps", "evaluation.every", "steps", sheet.number("logging_steps"))
    sheet.copy_number("save_total_limit", "run.keep_checkpoints")
    sheet.copy_number("eval_batch_size", "evaluation.batch_size")
    sheet.copy_number("early_stopping_patience", "evaluation.patience")
    if sheet.has("wandb_project"):
        sheet.take("wandb_project", "run.trackers", ["wandb"], "under peftlab's own names")
    take_trackers(sheet)


def take_pure(sheet: Sheet) -> None:
    """Take a type of computation without mixed precision, unless `bf16` or `fp16` say another."""
    for key, amp, dtype in (("bfloat16", "bf16", "bfloat16"), ("float16", "fp16", "float16")):
        if sheet.on(key) and not sheet.has(amp) and sheet.peek("training.precision") is None:
            sheet.take(key, "training.precision", dtype, "trained weights are in float32 here")
    sheet.ignore_all({"bfloat16": "bf16 decides", "float16": "fp16 decides"})


def take_accumulation(sheet: Sheet) -> None:
    """Take the micro-batches of a step: given, or the step's rows divided by a micro-batch's."""
    rows, micro = sheet.number("batch_size"), sheet.number("micro_batch_size", 1)
    if rows and not sheet.has("gradient_accumulation_steps"):
        sheet.take("batch_size", "training.gradient_accumulation", rows // micro, f"{rows} rows / {micro}")
        return
    sheet.ignore("batch_size", "gradient_accumulation_steps has priority")
    sheet.copy_number("gradient_accumulation_steps", "training.gradient_accumulation")


AXOLOTL = Peer(
    "axolotl",
    "axolotl",
    frozenset({"base_model", "datasets", "micro_batch_size", "sequence_len", "num_epochs", "val_set_size", "adapter"}),
    fill,
)
