"""PEFT's `adapter_config.json` (https://huggingface.co/docs/peft): the method of a trained adapter, and its base."""

from __future__ import annotations

from peftlab.conversion.lora import UNFREEZE, names_of, take_start, take_targets
from peftlab.conversion.peer import Peer
from peftlab.conversion.sheet import Sheet
from peftlab.errors import UsageError

TASKS = {
    "CAUSAL_LM": "causal-lm",
    "SEQ_2_SEQ_LM": "sequence-to-sequence",
    "SEQ_CLS": "sequence-classification",
    "TOKEN_CLS": "token-classification",
}
ADDED_HEADS = {"classifier", "score"}
NEW_HEAD = "a new head trains in any case; name a head that is trained already in method.unfreeze"
BIASES = {"none": "none", "all": "all", "lora_only": "lora-only"}
IGNORED = {
    "peft_version": "what wrote the file",
    "auto_mapping": "how the file is loaded",
    "inference_mode": "how the file is loaded",
    "fan_in_fan_out": "known from the model",
    "megatron_core": "how devices are used",
    "runtime_config": "speed, not the result",
    "qalora_group_size": "off",
    "eva_config": "off",
    "corda_config": "off",
    "loftq_config": "the start of A and B",
    "lora_ga_config": "off",
    "num_transformer_submodules": "known from the model",
    "num_attention_heads": "known from the model",
    "num_layers": "known from the model",
    "token_dim": "known from the model",
    "tokenizer_kwargs": "the model's own",
    "tokenizer_name_or_path": "the model's own",
}
MISSED = {
    "layers_to_transform": "all layers get an update",
    "layers_pattern": "all layers get an update",
    "exclude_modules": "these projections get an update too",
    "rank_pattern": "every projection has the same rank",
    "alpha_pattern": "every projection has the same alpha",
    "megatron_config": "layers of Megatron are not read",
    "target_parameters": "fused weights of experts get no update",
    "trainable_token_indices": "no single embeddings train: name new tokens in model.add_tokens",
    "layer_replication": "no layers are repeated",
    "lora_bias": "B has no bias",
    "use_qalora": "plain LoRA",
    "alora_invocation_tokens": "the adapter is active at all tokens",
    "arrow_config": "one adapter is used",
    "ensure_weight_tying": "tied weights that train are as peftlab's method has them",
    "use_bdlora": "plain LoRA",
}


def fill(sheet: Sheet) -> None:
    sheet.copy("base_model_name_or_path", "model.name")
    sheet.copy("revision", "model.revision")
    if str(sheet.get("task_type")) in TASKS:
        sheet.take("task_type", "model.task", TASKS[str(sheet.get("task_type"))])
    elif sheet.has("task_type"):
        sheet.miss("task_type", "model.task = causal-lm")
    kind = str(sheet.get("peft_type"))
    if kind not in METHODS:
        raise UsageError(f"peft_type: {kind} has no counterpart; peftlab has {', '.join(METHODS)}")
    METHODS[kind](sheet)
    sheet.ignore_all(IGNORED)
    sheet.miss_all(MISSED)
    sheet.notes.append("the file has no data and no training settings: set data.train and training in the recipe")


def take_saved(sheet: Sheet) -> None:
    """Take the modules that train whole, but for the names of heads that PEFT itself adds for its classifiers.

    It adds all of them, whichever the model has.
    """
    names = names_of(sheet.get("modules_to_save"))
    added = sheet.get("task_type") in ("SEQ_CLS", "TOKEN_CLS") and ADDED_HEADS <= set(names)
    if kept := [name for name in names if not (added and name in ADDED_HEADS)]:
        sheet.take("modules_to_save", "method.unfreeze", kept, f"{UNFREEZE}; {NEW_HEAD}" if added else UNFREEZE)
    elif added:
        sheet.ignore("modules_to_save", NEW_HEAD)


def fill_lora(sheet: Sheet) -> None:
    sheet.take("peft_type", "method.type", "lora", "qlora, if the base was quantised: the file does not say")
    sheet.copy_number("r", "method.rank", 8)
    sheet.copy_number("lora_alpha", "method.alpha", 8)
    sheet.copy_number("lora_dropout", "method.dropout")
    sheet.copy_flag("use_rslora", "method.rslora")
    sheet.copy_flag("use_dora", "method.dora")
    take_targets(sheet, "target_modules")
    take_saved(sheet)
    if sheet.has("bias"):
        sheet.take("bias", "method.bias", BIASES.get(str(sheet.get("bias")), str(sheet.get("bias"))))
    take_start(sheet, "init_lora_weights")


def fill_prefix(sheet: Sheet) -> None:
    sheet.set("method.kind", "prefix")
    sheet.take("peft_type", "method.type", "prefix")
    sheet.copy_number("num_virtual_tokens", "method.length")
    sheet.copy_flag("prefix_projection", "method.projection")
    if sheet.on("prefix_projection"):
        sheet.copy_number("encoder_hidden_size", "method.projection_dim")
    sheet.ignore_all({"encoder_hidden_size": "of the projection only"})


def fill_prompt(sheet: Sheet) -> None:
    sheet.set("method.type", "prefix")
    sheet.take("peft_type", "method.kind", "prompt", "method.type = prefix")
    sheet.copy_number("num_virtual_tokens", "method.length")
    if sheet.get("prompt_tuning_init", "RANDOM") != "RANDOM":
        sheet.miss("prompt_tuning_init", "virtual tokens do not start from this text")
    sheet.ignore_all({"prompt_tuning_init": "the default"})
    sheet.miss_all({"prompt_tuning_init_text": "virtual tokens do not start from this text"})


METHODS = {"LORA": fill_lora, "PREFIX_TUNING": fill_prefix, "PROMPT_TUNING": fill_prompt}

PEFT = Peer(
    "peft", "PEFT", frozenset({"peft_type", "base_model_name_or_path", "target_modules", "inference_mode"}), fill
)
