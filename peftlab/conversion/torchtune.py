"""torchtune's YAML (https://docs.pytorch.org/torchtune): components by their dotted names, with their arguments."""

from __future__ import annotations

from typing import Any

from peftlab.conversion.axolotl_data import KINDS
from peftlab.conversion.lora import names_of, take_quantization
from peftlab.conversion.names import note_batch, take_cut, take_packing
from peftlab.conversion.peer import Peer
from peftlab.conversion.sheet import Sheet, is_off
from peftlab.conversion.trainer_arguments import SHOWN, SPEED, take_clip
from peftlab.conversion.variables import resolve
from peftlab.errors import UsageError

COMPONENT = "_component_"
PROJECTIONS = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "output_proj": "o_proj"}
FEED_FORWARD = ["gate_proj", "up_proj", "down_proj"]
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "AdamW": {"type": "adamw"},
    "AdamW8bit": {"type": "adamw", "bits": 8},
    "PagedAdamW": {"type": "adamw", "paged": True},
    "PagedAdamW8bit": {"type": "adamw", "bits": 8, "paged": True},
    "SGD": {"type": "sgd"},
}
# Builders of data sets: their source, how a row is read, and whether prompts are supervised by default.
DATA_SETS: dict[str, tuple[str | None, str, bool]] = {
    "alpaca_dataset": ("tatsu-lab/alpaca", "completion", True),
    "alpaca_cleaned_dataset": ("yahma/alpaca-cleaned", "completion", True),
    "chat_dataset": (None, "chat", False),
    "instruct_dataset": (None, "completion", False),
    "slimorca_dataset": ("Open-Orca/SlimOrca-Dedup", "chat", False),
    "text_completion_dataset": (None, "text", False),
    "wikitext_dataset": ("wikitext", "text", False),
}
LOSSES = ("CrossEntropyLoss", "CEWithChunkedOutputLoss", "LinearCrossEntropyLoss")
IGNORED = {
    "checkpointer.*": "files of the checkpoint",
    "resume_from_checkpoint": "`peftlab train --resume` resumes its own checkpoints only",
    "save_adapter_weights_only": "adapters are stored by themselves",
    "save_last_epoch_only": "run.save_every decides",
    "output_dir": "run.output is `runs/NAME` by default",
    "compile": SPEED,
    "optimizer.fused": SPEED,
    "optimizer.foreach": SPEED,
    "enable_activation_offloading": "memory, not the result",
    "activation_offloading_use_streams": "memory, not the result",
    "custom_sharded_layers": "how memory is shared by devices",
    "fsdp_*": "how memory is shared by devices",
    "metric_logger.*": SHOWN,
    "log_*": SHOWN,
    "profiler.*": SHOWN,
    "profiler": SHOWN,
    "tokenizer.path": "the model's own",
    "tokenizer.merges_file": "the model's own",
    "tokenizer._component_": "the model's own",
    "dataset.add_eos": "the end of a text is always supervised",
}
MISSED = {
    "tokenizer.prompt_template": "the tokenizer's own chat template is used",
    "model.lora_attn_modules": "projections of this name are not known",
    "dataset.new_system_prompt": "no system text is added",
    "dataset.image_*": "no pictures are read",
    "optimizer_in_bwd": "the optimiser steps after the backward pass: the result is the same without clipping",
    "enable_qat": "weights are not rounded in training",
    "quantizer*": "weights are not rounded in training",
    "tensor_parallel_dim": "one device has whole layers",
    "run_val_every_n_steps": "set evaluation.every and data.evaluation",
}


def fill(sheet: Sheet) -> None:
    refuse_preferences(sheet)
    sheet.values = resolve(sheet.values)
    take_model(sheet)
    take_data(sheet)
    take_training(sheet)
    sheet.ignore_all(IGNORED)
    sheet.miss_all(MISSED)


def refuse_preferences(sheet: Sheet) -> None:
    key = f"loss.{COMPONENT}"
    if ".rlhf." in str(sheet.get(key)) or any(name.startswith("teacher_") for name in sheet.values):
        text = f"{key}: {sheet.get(key)}" if sheet.has(key) else "teacher_model"
        raise UsageError(f"{text}: peftlab does supervised fine-tuning only")


def component(sheet: Sheet, section: str) -> str:
    return str(sheet.get(f"{section}.{COMPONENT}", "")).rpartition(".")[2]


def take_model(sheet: Sheet) -> None:
    sheet.copy("checkpointer.checkpoint_dir", "model.name")
    key, builder = f"model.{COMPONENT}", component(sheet, "model")
    if sheet.on("model.quantize_base") or builder.startswith("qlora_"):
        take_quantization(sheet, 4, key if builder.startswith("qlora_") else "model.quantize_base")
        sheet.take(key, "method.type", "qlora")
    elif builder.startswith(("lora_", "dora_")):
        sheet.take(key, "method.type", "lora")
    else:
        sheet.take(key, "method.type", "full")
        sheet.ignore_all({"model.lora_*": "no adapter", "model.apply_lora_*": "no adapter"})
        return
    sheet.ignore_all({"model.quantize_base": "off"})
    sheet.copy_number("model.lora_rank", "method.rank", 8)
    sheet.copy_number("model.lora_alpha", "method.alpha", 16)
    sheet.copy_number("model.lora_dropout", "method.dropout")
    if builder.startswith("dora_"):
        sheet.set("method.dora", True)
    sheet.copy_flag("model.use_dora", "method.dora")
    take_projections(sheet)


def take_projections(sheet: Sheet) -> None:
    key = "model.lora_attn_modules"
    names = list(dict.fromkeys(names_of(sheet.get(key))))
    if any(name not in PROJECTIONS for name in names):
        raise UsageError(f"{key}: {', '.join(names)}: torchtune has {', '.join(PROJECTIONS)}")
    targets: Any = [PROJECTIONS[name] for name in names]
    if sheet.on("model.apply_lora_to_mlp"):
        targets = "all-linear" if len(names) == len(PROJECTIONS) else [*targets, *FEED_FORWARD]
        sheet.take("model.apply_lora_to_mlp", "method.targets", targets)
    sheet.take(key, "method.targets", targets)
    sheet.ignore_all({"model.apply_lora_to_mlp": "off"})
    sheet.miss_all({"model.apply_lora_to_output": "the head gets no update: `method.unfreeze` trains it whole"})


def take_data(sheet: Sheet) -> None:
    if "dataset" in sheet.values:
        sheet.miss("dataset", "several data sets: list their sources in data.train and set data.format")
    else:
        take_source(sheet)
    if sheet.number("tokenizer.max_seq_len"):
        sheet.copy_number("tokenizer.max_seq_len", "data.max_length")
        take_cut(sheet)
    else:
        sheet.miss("tokenizer.max_seq_len", "no limit there; data.max_length = 512 here, and longer rows are shortened")
    take_packing(sheet, "dataset.packed")
    if sheet.has("shuffle") and not sheet.on("shuffle"):
        sheet.miss("shuffle", "rows are always shuffled")
    sheet.ignore_all({"shuffle": "rows are always shuffled"})
    take_columns(sheet)


def take_source(sheet: Sheet) -> None:
    key, builder = f"dataset.{COMPONENT}", component(sheet, "dataset")
    source, row, prompts = DATA_SETS.get(builder, (None, None, False))
    if row is None:
        sheet.miss(key, "rows of this data set are not known; set data.format, template and columns")
    else:
        sheet.take(key, "data.format", row)
    files = names_of(sheet.get("dataset.data_files"))
    split = sheet.get("dataset.split", "train")
    if files and sheet.get("dataset.source") not in (None, *KINDS):
        sheet.miss(
            "dataset.data_files", f"all files of {sheet.get('dataset.source')} are read: name files that are here"
        )
        files = []
    if files:
        sheet.take("dataset.data_files", "data.train", files[0] if len(files) == 1 else files)
        sheet.ignore("dataset.source", "the kind of file")
    elif name := sheet.get("dataset.source", source):
        subset = f":{sheet.get('dataset.name')}" if sheet.has("dataset.name") else ""
        value = f"{name}{subset}" if split == "train" else f"{name}{subset}[{split}]"
        sheet.take("dataset.source", "data.train", value)
        sheet.ignore_all({"dataset.name": "in data.train"})
    if "[" not in str(split) and split != "train" and files:
        sheet.miss("dataset.split", "the whole file is read")
    elif "[" in str(split):
        sheet.miss("dataset.split", f"write the part as in `{sheet.peek('data.train')}[:80%]`")
    sheet.ignore_all({"dataset.split": "in data.train"})
    if row in ("completion", "chat") and (sheet.on("dataset.train_on_input", prompts)):
        sheet.miss("dataset.train_on_input", "on there; only answers are supervised, prompts are not")
    sheet.ignore_all({"dataset.train_on_input": "prompts are never supervised"})


def take_columns(sheet: Sheet) -> None:
    sheet.ignore_all({"dataset.conversation_style": "both styles are read"})
    if sheet.has("dataset.conversation_column"):
        name = sheet.get("dataset.conversation_column")
        if name in ("messages", "conversations"):
            sheet.ignore("dataset.conversation_column", "read by default")
        else:
            sheet.take("dataset.conversation_column", "data.columns.messages", name)
    if sheet.has("dataset.column"):
        sheet.take("dataset.column", "data.columns.text", sheet.get("dataset.column"))
    names = {"input": "prompt", "output": "completion"}
    if component(sheet, "dataset") == "instruct_dataset":
        for theirs, ours in names.items():
            sheet.take(
                f"dataset.column_map.{theirs}",
                f"data.columns.{ours}",
                sheet.get(f"dataset.column_map.{theirs}", theirs),
            )


def take_training(sheet: Sheet) -> None:
    sheet.copy_number("batch_size", "training.batch_size")
    sheet.copy_number("gradient_accumulation_steps", "training.gradient_accumulation")
    note_batch(sheet)
    take_length(sheet)
    take_optimizer(sheet)
    take_schedule(sheet)
    if sheet.number("clip_grad_norm") is None:
        sheet.take("clip_grad_norm", "training.clip", None)
    take_clip(sheet, "clip_grad_norm")
    if sheet.has("dtype"):
        dtype = DTYPES.get(str(sheet.get("dtype")), str(sheet.get("dtype")))
        sheet.set("model.dtype", dtype)
        sheet.take("dtype", "training.precision", dtype, "model.dtype too; trained weights are in float32 here")
    sheet.copy_flag("enable_activation_checkpointing", "training.gradient_checkpointing")
    sheet.copy_number("seed", "run.seed")
    if sheet.get("device") in ("cpu", "cuda"):
        sheet.copy("device", "run.device")
    if component(sheet, "metric_logger") == "WandBLogger":
        sheet.take(f"metric_logger.{COMPONENT}", "run.trackers", ["wandb"])
    if component(sheet, "loss") in LOSSES:
        sheet.ignore_all({"loss.*": "the same loss"})
    sheet.miss_all({"loss.*": "the plain cross-entropy is used"})


def take_length(sheet: Sheet) -> None:
    epochs, most = sheet.number("epochs", 1), sheet.number("max_steps_per_epoch")
    if most:
        note = f"{epochs} x {most}, if an epoch has as many"
        sheet.take("max_steps_per_epoch", "training.steps", int(epochs * most), note)
        sheet.ignore("epochs", "in training.steps")
    else:
        sheet.copy_number("epochs", "training.epochs", 1)


def take_optimizer(sheet: Sheet) -> None:
    key, name = f"optimizer.{COMPONENT}", component(sheet, "optimizer")
    sheet.set("training.optimizer", dict(OPTIMIZERS.get(name, OPTIMIZERS["AdamW"])))
    if name in OPTIMIZERS:
        sheet.take(key, "training.optimizer", OPTIMIZERS[name])
    else:
        sheet.miss(key, "training.optimizer = adamw instead; its learning rate may not suit AdamW")
    sheet.set("training.optimizer", dict(OPTIMIZERS.get(name, OPTIMIZERS["AdamW"])))
    sheet.copy_number("optimizer.lr", "training.learning_rate")
    sheet.copy_number("optimizer.weight_decay", "training.weight_decay", 0.0 if name == "SGD" else 0.01)
    sheet.copy_number("optimizer.eps", "training.optimizer.eps")
    sheet.copy_number("optimizer.momentum", "training.optimizer.momentum")
    if sheet.has("optimizer.betas"):
        given = sheet.get("optimizer.betas")
        betas = [float(one) for one in given] if is_numbers(given) else given
        sheet.take("optimizer.betas", "training.optimizer.betas", betas)


def is_numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(type(one) in (int, float) for one in value)


def take_schedule(sheet: Sheet) -> None:
    key, name = f"lr_scheduler.{COMPONENT}", component(sheet, "lr_scheduler")
    if not name:
        sheet.take(key, "training.schedule", "constant")
    elif name == "get_cosine_schedule_with_warmup":
        sheet.take(key, "training.schedule", "cosine")
        sheet.copy_number("lr_scheduler.num_warmup_steps", "training.warmup")
        if not (is_off(cycles := sheet.get("lr_scheduler.num_cycles")) or cycles == 0.5):
            sheet.miss("lr_scheduler.num_cycles", "half a cycle")
        sheet.ignore_all({"lr_scheduler.num_cycles": "half a cycle"})
    else:
        sheet.set("training.schedule", "constant")
        sheet.miss(key, "training.schedule = constant instead")


TORCHTUNE = Peer(
    "torchtune",
    "torchtune",
    frozenset({f"model.{COMPONENT}", f"tokenizer.{COMPONENT}", f"optimizer.{COMPONENT}", f"dataset.{COMPONENT}"})
    | {f"checkpointer.{COMPONENT}", "checkpointer.checkpoint_dir"},
    fill,
    nested=True,
)
