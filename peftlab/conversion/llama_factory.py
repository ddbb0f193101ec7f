"""LLaMA-Factory's YAML (https://llamafactory.readthedocs.io, `llamafactory-cli train`)."""

from __future__ import annotations

import math

from peftlab.conversion.lora import UNFREEZE, names_of, take_quantization, take_targets
from peftlab.conversion.names import note_batch, take_attention, take_cut, take_packing
from peftlab.conversion.peer import Peer
from peftlab.conversion.sheet import Sheet
from peftlab.conversion.trainer_arguments import SPEED, take_trainer_arguments
from peftlab.conversion.variables import resolve
from peftlab.errors import UsageError

FORMATS = {"pt": "text", "sft": "chat"}
IGNORED = {
    "overwrite_cache": "tokens have a cache of their own",
    "preprocessing_*": SPEED,
    "tokenized_path": "tokens have a cache of their own",
    "use_fast_tokenizer": SPEED,
    "use_unsloth": SPEED,
    "enable_liger_kernel": SPEED,
    "low_cpu_mem_usage": SPEED,
    "use_swanlab": "a tracker; name it in run.trackers",
    "swanlab_*": "a tracker; name it in run.trackers",
    "dataset_dir": "sources are files of their own",
    "media_dir": "no pictures are read",
    "cache_dir": "where downloads are kept",
    "infer_*": "`peftlab chat` and `generate` have options",
    "predict_with_generate": "evaluation.metrics decide",
    "ray_*": "how processes are started",
    "upcast_*": "trained weights are always in float32",
    "ignore_pad_token_for_loss": "padding is never supervised",
    "use_reentrant_gc": "the same gradients",
}
MISSED = {
    "loraplus_lr_ratio": "A and B have the same learning rate",
    "loraplus_lr_embedding": "no other learning rate for embeddings",
    "use_galore": "AdamW is used",
    "use_apollo": "AdamW is used",
    "use_badam": "AdamW is used on all parameters",
    "use_muon": "AdamW is used",
    "use_adam_mini": "AdamW is used",
    "use_llama_pro": "no blocks are added",
    "use_dft_loss": "the plain loss is used",
    "use_eaft_loss": "the plain loss is used",
    "shift_attn": "attention is not shifted",
    "rope_scaling": "positions are not scaled",
    "mixture_of_depths": "every layer reads every token",
    "resize_vocab": "name new tokens in model.add_tokens",
    "new_special_tokens": "no tokens are added: name them in model.add_tokens",
    "interleave_probs": "rows are not drawn by weight: set `weight` of each source",
    "eval_on_each_dataset": "the data sets are evaluated together",
    "freeze_extra_modules": "only layers train: name the others in method.unfreeze",
    "freeze_vision_tower": "no pictures are read",
    "compute_accuracy": "name the metric in evaluation.metrics",
    "default_system": "no system text is added",
    "tool_format": "the model's own template writes tools",
    "disable_shuffling": "rows are always shuffled",
    "pissa_convert": "the adapter is stored as it was trained",
}
LEARNED = {"galore_*": "off", "apollo_*": "off", "badam_*": "off", "freeze_*": "of freeze only", "pissa_iter": "off"}


def fill(sheet: Sheet) -> None:
    sheet.values = resolve(sheet.values)
    stage = str(sheet.get("stage", "sft"))
    if stage not in FORMATS:
        raise UsageError(f"stage: {stage}: peftlab does supervised fine-tuning only (sft, pt)")
    sheet.copy("model_name_or_path", "model.name")
    sheet.copy("model_revision", "model.revision")
    sheet.copy_flag("trust_remote_code", "model.trust_remote_code")
    take_attention(sheet, "flash_attn")
    take_method(sheet)
    take_data(sheet, stage)
    if sheet.on("pure_bf16"):
        sheet.set("model.dtype", "bfloat16")
        sheet.take("pure_bf16", "training.precision", "bfloat16", "trained weights stay in float32")
    take_trainer_arguments(sheet, precision=None)
    sheet.copy_number("early_stopping_steps", "evaluation.patience")
    note_batch(sheet)
    take_checkpointing(sheet)
    sheet.ignore_all(IGNORED | {"pure_bf16": "off"})
    sheet.miss_all(MISSED)
    sheet.ignore_all(LEARNED)


def take_checkpointing(sheet: Sheet) -> None:
    """Take gradient checkpointing, which is on unless a key turns it off."""
    value = not sheet.on("disable_gradient_checkpointing")
    sheet.take("disable_gradient_checkpointing", "training.gradient_checkpointing", value)


def take_method(sheet: Sheet) -> None:
    kind = sheet.get("finetuning_type", "lora")
    if kind == "lora":
        take_lora(sheet)
    elif kind in ("full", "freeze"):
        sheet.take("finetuning_type", "method.type", "full")
        sheet.ignore_all({"lora_*": "no adapter", "use_rslora": "no adapter", "use_dora": "no adapter"})
        if kind == "freeze":
            take_layers(sheet)
    else:
        raise UsageError(f"finetuning_type: {kind!r} has no counterpart; peftlab has lora, full and freeze")


def take_adapter(sheet: Sheet) -> None:
    """Take the adapter that training continues; of several, all but the last are merged into the base there."""
    if len(names_of(sheet.get("adapter_name_or_path"))) > 1:
        sheet.miss("adapter_name_or_path", "several adapters: training begins with a new one")
    elif sheet.has("adapter_name_or_path") and sheet.on("create_new_adapter"):
        text = "merged into the base there, and a new one is trained: merge it, and name the result in model.name"
        sheet.miss("adapter_name_or_path", text)
    else:
        sheet.copy("adapter_name_or_path", "method.from")


def take_lora(sheet: Sheet) -> None:
    bits = sheet.number("quantization_bit")
    if bits not in (None, 4, 8):
        raise UsageError(f"quantization_bit: {bits} has no counterpart; peftlab quantises to 4 and 8 bits")
    if sheet.get("quantization_method", "bnb") not in ("bnb", "bitsandbytes"):
        sheet.miss("quantization_method", "bitsandbytes quantises the base")
    sheet.ignore("quantization_method", "bitsandbytes") if "quantization_method" not in sheet.done else None
    take_quantization(sheet, bits, "quantization_bit", str(sheet.get("quantization_type", "nf4")))
    if sheet.has("quantization_type") and bits == 4:
        sheet.take("quantization_type", "method.quantization", str(sheet.get("quantization_type")))
    if bits == 4:
        sheet.copy_flag("double_quantization", "method.double_quantization", True)
    sheet.ignore_all({"quantization_type": "of 4 bits only", "double_quantization": "of 4 bits only"})
    sheet.take("finetuning_type", "method.type", sheet.peek("method.type"))
    sheet.copy_number("lora_rank", "method.rank", 8)
    sheet.copy_number("lora_alpha", "method.alpha", 2 * sheet.number("lora_rank", 8))
    sheet.copy_number("lora_dropout", "method.dropout")
    sheet.copy_flag("use_rslora", "method.rslora")
    sheet.copy_flag("use_dora", "method.dora")
    if sheet.on("pissa_init"):
        sheet.take("pissa_init", "method.init", "pissa")
    sheet.ignore_all({"pissa_init": "off"})
    if sheet.has("lora_target"):
        take_targets(sheet, "lora_target", ("all", "all-linear"))
    else:
        sheet.take("lora_target", "method.targets", "all-linear")
    take_adapter(sheet)
    sheet.ignore_all({"create_new_adapter": "the adapter is new" if sheet.on("create_new_adapter") else "off"})
    if names := names_of(sheet.get("additional_target")):
        sheet.take("additional_target", "method.unfreeze", names, UNFREEZE)


def take_layers(sheet: Sheet) -> None:
    layers = sheet.number("freeze_trainable_layers", 2)
    if layers > 0:
        sheet.take("freeze_trainable_layers", "method.layers", layers)
    else:
        sheet.miss("freeze_trainable_layers", "the first layers cannot be chosen: all layers train")
    if sheet.get("freeze_trainable_modules", "all") != "all":
        sheet.miss("freeze_trainable_modules", "all of a layer trains")
    sheet.ignore("freeze_trainable_modules", "all") if "freeze_trainable_modules" not in sheet.done else None


def take_data(sheet: Sheet, stage: str) -> None:
    note = "Alpaca's and ShareGPT's rows become chats; Alpaca's input follows a blank line, there a line break"
    sheet.take("stage", "data.format", FORMATS[stage], note if stage == "sft" else "")
    for key, where in (("dataset", "data.train"), ("eval_dataset", "data.evaluation")):
        if names := names_of(sheet.get(key)):
            sheet.set(where, names[0] if len(names) == 1 else names)
            text = (
                f"{where} = {', '.join(names)}: names of dataset_info.json; write the file or hub name of each instead"
            )
            sheet.miss(key, text)
    held_out = sheet.number("val_size", 0)
    if held_out:
        sheet.take("val_size", "data.evaluation", held_out if held_out < 1 else int(held_out))
    sheet.ignore_all({"val_size": "no rows are held out"})
    take_samples(sheet)
    sheet.copy_number("cutoff_len", "data.max_length", 2048)
    if stage == "sft":
        take_cut(sheet, "a share of prompt and answer")
    elif not (sheet.on("packing", True) or sheet.on("neat_packing")):
        sheet.set("data.long", "cut")  # else texts are joined there, and nothing of them is lost
    take_supervised(sheet, stage)
    take_packing(sheet, "neat_packing" if sheet.on("neat_packing") else "packing", default=stage == "pt")
    sheet.ignore_all({"packing": "in neat_packing", "neat_packing": "off"})
    if sheet.on("streaming"):
        sheet.take("streaming", "data.streaming", True)
        sheet.copy_number("buffer_size", "data.shuffle_buffer", 16384)
    sheet.ignore_all({"streaming": "off", "buffer_size": "of streaming only"})
    if sheet.get("mix_strategy", "concat") != "concat":
        sheet.miss("mix_strategy", "the data sets are joined: set `weight` of each source")
    sheet.ignore_all({"mix_strategy": "the data sets are joined"})


def take_samples(sheet: Sheet) -> None:
    if not sheet.has("max_samples"):
        return
    most, held_out = sheet.number("max_samples"), sheet.number("val_size", 0)
    if len(names_of(sheet.get("dataset"))) == 1:
        evaluated = math.ceil(most * held_out) if held_out < 1 else int(held_out)
        sheet.take("max_samples", "data.train_rows", int(most) - evaluated, "drawn by the seed, not the first")
        if evaluated or sheet.has("eval_dataset"):
            sheet.take("max_samples", "data.evaluation_rows", evaluated or int(most))
    else:
        sheet.miss("max_samples", "the limit of each data set: all rows are used; set data.train_rows for all together")


def take_supervised(sheet: Sheet, stage: str) -> None:
    if sheet.has("template"):
        text = "the tokenizer's own chat template is used: prompts differ where it is another one"
        sheet.ignore("template", "running text has none") if stage == "pt" else sheet.miss("template", text)
    if sheet.on("mask_history"):
        sheet.take("mask_history", "data.supervise", "last")
    sheet.ignore_all({"mask_history": "every answer is supervised"})
    sheet.miss_all({"train_on_prompt": "only answers are supervised, prompts are not"})
    if sheet.has("enable_thinking"):
        sheet.miss("enable_thinking", "set data.thinking and data.template_kwargs for the model's own template")


LLAMA_FACTORY = Peer(
    "llama-factory",
    "LLaMA-Factory",
    frozenset(
        {"finetuning_type", "stage", "lora_rank", "lora_target", "cutoff_len", "template", "dataset", "val_size"}
    ),
    fill,
)
