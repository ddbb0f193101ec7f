"""TRL's SFT script: a YAML for `trl sft --config`, or the command line itself (https://huggingface.co/docs/trl)."""

from __future__ import annotations

from peftlab.conversion.lora import UNFREEZE, names_of, take_quantization, take_start, take_targets
from peftlab.conversion.names import note_batch, take_attention, take_cut, take_packing
from peftlab.conversion.peer import Peer
from peftlab.conversion.sheet import Sheet
from peftlab.conversion.trainer_arguments import SPEED, take_trainer_arguments
from peftlab.conversion.trl_command import PROCESSES

IGNORED = {
    "dataset_num_proc": SPEED,
    "dataset_batch_size": SPEED,
    "padding_free": SPEED,
    "eval_packing": "evaluation is the same with it",
    "pad_to_multiple_of": "padding has no effect on the loss",
    "activation_offloading": "memory, not the result",
    "lora_task_type": "model.task is causal-lm",
    "use_vllm": "nothing is generated in training",
    "use_cache": "nothing is generated in training",
    "model_code_revision": "the model's revision is used",
}
MISSED = {
    "chat_template_path": "the tokenizer's own chat template is used: prompts differ where it is another one",
    "eos_token": "the tokenizer's own end is used",
    "pad_token": "padding is the tokenizer's own",
    "dataset_kwargs": "rows are prepared in peftlab's way",
    "model_init_kwargs": "the model is loaded with its own settings",
    "teacher_model_name_or_path": "no teacher is used",
    "lora_target_parameters": "fused weights of experts get no update",
    "streaming": "set data.streaming, with training.steps",
    "dataset_streaming": "set data.streaming, with training.steps",
}


def fill(sheet: Sheet) -> None:
    sheet.copy("model_name_or_path", "model.name")
    if sheet.get("model_revision") != "main":
        sheet.copy("model_revision", "model.revision")
    sheet.ignore_all({"model_revision": "the default"})
    sheet.copy_flag("trust_remote_code", "model.trust_remote_code")
    for key in ("dtype", "torch_dtype"):
        sheet.copy_dtype(key, "model.dtype")
    if sheet.on("use_flash_attention_2"):
        sheet.take("use_flash_attention_2", "model.attention", "flash_attention_2")
    take_attention(sheet, "attn_implementation")
    take_method(sheet)
    take_data(sheet)
    take_trainer_arguments(sheet, learning_rate=2e-5, checkpointing=True, precision="bfloat16", logging=10)
    processes = sheet.number(PROCESSES)
    note_batch(sheet, processes)
    sheet.ignore(PROCESSES, "`peftlab launch --processes` says how many")
    sheet.ignore_all(IGNORED)
    sheet.miss_all(MISSED)


def take_method(sheet: Sheet) -> None:
    if not sheet.on("use_peft"):
        sheet.take("use_peft", "method.type", "full")
        sheet.ignore_all({"lora_*": "no adapter", "use_rslora": "no adapter", "use_dora": "no adapter"})
        quantised = {key: "a quantised base cannot train" for key in ("load_in_4bit", "load_in_8bit")}
        sheet.miss_all(quantised)
        sheet.ignore_all({"bnb_*": "not quantised", "use_bnb_nested_quant": "not quantised"})
        return
    four, eight = sheet.on("load_in_4bit"), sheet.on("load_in_8bit")
    key = "load_in_4bit" if four else "load_in_8bit"
    take_quantization(sheet, 4 if four else 8 if eight else None, key, str(sheet.get("bnb_4bit_quant_type", "nf4")))
    if four:
        sheet.copy("bnb_4bit_quant_type", "method.quantization")
        sheet.copy_flag("use_bnb_nested_quant", "method.double_quantization", False)
        sheet.copy_dtype("bnb_4bit_compute_dtype", "method.compute_dtype")
        sheet.ignore_all({"bnb_4bit_quant_storage": "how four bits are stored, not what they are"})
    sheet.ignore_all({"bnb_*": "of 4 bits only", "use_bnb_nested_quant": "of 4 bits only"})
    sheet.ignore_all({"load_in_4bit": "off", "load_in_8bit": "off"})
    sheet.take("use_peft", "method.type", sheet.peek("method.type"))
    sheet.copy_number("lora_r", "method.rank", 16)
    sheet.copy_number("lora_alpha", "method.alpha", 32)
    sheet.copy_number("lora_dropout", "method.dropout", 0.05)
    sheet.copy_flag("use_rslora", "method.rslora")
    sheet.copy_flag("use_dora", "method.dora")
    take_targets(sheet, "lora_target_modules")
    if names := names_of(sheet.get("lora_modules_to_save")):
        sheet.take("lora_modules_to_save", "method.unfreeze", names, UNFREEZE)
    take_start(sheet, "lora_init")


def take_data(sheet: Sheet) -> None:
    if sheet.has("dataset_name"):
        take_source(sheet)
    sheet.miss_all({"datasets": "a mixture: list the sources in data.train"})
    if sheet.get("dataset_text_field", "text") != "text":
        sheet.take("dataset_text_field", "data.columns.text", sheet.get("dataset_text_field"))
    sheet.ignore_all({"dataset_text_field": "the default"})
    key = "max_seq_length" if sheet.has("max_seq_length") else "max_length"
    if key in sheet.values and not sheet.has(key):
        sheet.miss(key, "no limit there; data.max_length = 512 here, and longer rows are shortened")
    else:
        sheet.copy_number(key, "data.max_length", 1024)
        take_cut(sheet)
    if sheet.get("truncation_mode", "keep_start") != "keep_start":
        sheet.miss("truncation_mode", "data.truncate decides: the prompt is cut, never the answer")
    sheet.ignore_all({"truncation_mode": "data.truncate decides: the prompt is cut, never the answer"})
    take_packing(sheet, "packing")
    sheet.ignore_all({"packing_strategy": "rows are not joined to sequences"})
    if sheet.has("shuffle_dataset"):
        sheet.ignore("shuffle_dataset", "rows are always shuffled")
    take_supervised(sheet)


def take_source(sheet: Sheet) -> None:
    """Take the data set with its subset and splits; the test split is for evaluation where it is made."""
    name = str(sheet.get("dataset_name"))
    name += f":{sheet.get('dataset_config')}" if sheet.has("dataset_config") else ""
    split = str(sheet.get("dataset_train_split", "train"))
    sheet.take("dataset_name", "data.train", name if split == "train" else f"{name}[{split}]")
    for key in ("dataset_config", "dataset_train_split"):
        if sheet.has(key):
            sheet.take(key, "data.train", sheet.peek("data.train"))
    strategy = sheet.get("eval_strategy", sheet.get("evaluation_strategy", "no"))
    if strategy in ("no", False):
        sheet.ignore("dataset_test_split", "no evaluation")
    else:
        test = sheet.get("dataset_test_split", "test")
        sheet.take("dataset_test_split", "data.evaluation", f"{name}[{test}]")


def take_supervised(sheet: Sheet) -> None:
    """Take what is supervised: by default a completion, where there is one, else the whole row."""
    whole = "in a chat only the assistant's turns are supervised, not the whole row as there"
    if sheet.on("assistant_only_loss"):
        sheet.take("assistant_only_loss", "data.format", "chat", "the assistant's turns are supervised")
    else:
        sheet.miss("assistant_only_loss", whole)
    if sheet.has("completion_only_loss") and not sheet.on("completion_only_loss"):
        sheet.miss("completion_only_loss", "only completions are supervised, prompts are not")
    elif sheet.has("completion_only_loss") and not sheet.on("assistant_only_loss"):
        sheet.take("completion_only_loss", "data.format", "completion", "chat, where prompts are messages")
    sheet.ignore_all({"completion_only_loss": "the assistant's turns are supervised"})
    if sheet.get("loss_type", "nll") not in ("nll", "chunked_nll"):
        sheet.miss("loss_type", "the plain loss is used")
    sheet.ignore_all({"loss_type": "the same loss"})


TRL = Peer(
    "trl",
    "TRL",
    frozenset(
        {"use_peft", "dataset_name", "lora_r", "lora_target_modules", "max_length", "max_seq_length"}
        | {"assistant_only_loss", "completion_only_loss", "dataset_train_split", "dataset_text_field"}
    ),
    fill,
)
