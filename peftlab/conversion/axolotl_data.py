"""Axolotl's data sets: their sources, the types of their rows, and what of a row is supervised."""

from __future__ import annotations

from typing import Any

from peftlab.conversion.lora import names_of
from peftlab.conversion.names import take_packing
from peftlab.conversion.sheet import OFF, Sheet

# What `datasets: type` says of rows.
FORMATS = {
    "alpaca": "completion",
    "completion": "text",
    "pretrain": "text",
    "chat_template": "chat",
    "sharegpt": "chat",
}
# Keys of a data set that are read.
READ = {"path", "name", "split", "type", "data_files", "ds_type", "field", "field_messages", "conversation"} | {
    "message_property_mappings",
    "message_field_role",
    "message_field_content",
    "chat_template",
    "roles_to_train",
    "train_on_eos",
    "revision",
}


def take_data(sheet: Sheet) -> None:
    sources = [one for one in sheet.get("datasets", ()) if isinstance(one, dict)]
    if sources:
        take_sources(sheet, "datasets", "data.train", sources)
        take_rows(sheet, sources)
    if sheet.has("test_datasets"):
        tests = [one for one in sheet.get("test_datasets") if isinstance(one, dict)]
        take_sources(sheet, "test_datasets", "data.evaluation", tests)
    held_out = sheet.number("val_set_size", 0)
    if held_out:
        sheet.take("val_set_size", "data.evaluation", held_out if held_out < 1 else int(held_out))
    else:
        sheet.ignore("val_set_size", "no rows are held out")
    sheet.copy_number("sequence_len", "data.max_length", 512)
    take_long_rows(sheet)
    take_packing(sheet, "sample_packing")
    if sheet.on("train_on_inputs"):
        sheet.miss("train_on_inputs", "only answers are supervised, prompts are not")
    else:
        sheet.ignore("train_on_inputs", "prompts are never supervised")
    template = sheet.get("chat_template")
    if template in (None, "tokenizer_default"):
        sheet.ignore("chat_template", "the model's own template")
    else:
        sheet.miss("chat_template", f"the tokenizer's own template is used: prompts differ where it is not {template}")
    sheet.miss_all({"chat_template_jinja": "the tokenizer's own template is used", "roles_to_train": "assistant only"})


def take_long_rows(sheet: Sheet) -> None:
    """Take what becomes of rows that are too long: axolotl drops those that are not running text."""
    strategy = sheet.get("excess_length_strategy", "drop")
    if sheet.peek("data.format") == "text" and not sheet.has("excess_length_strategy"):
        return
    if strategy in ("drop", "truncate"):
        note = "above data.allow_dropped of all rows the run stops" if strategy == "drop" else ""
        sheet.take("excess_length_strategy", "data.long", "skip" if strategy == "drop" else "cut", note)
    else:
        sheet.miss("excess_length_strategy", "rows that are too long are cut")


def source_of(one: dict[str, Any]) -> str:
    """Return a data set as recipes name it: file, or hub name with subset and split."""
    files = names_of(one.get("data_files"))
    if len(files) == 1:
        return files[0]
    name = str(one.get("path"))
    name += f":{one['name']}" if one.get("name") else ""
    return name + (f"[{one['split']}]" if one.get("split") not in (None, "train") else "")


def take_sources(sheet: Sheet, key: str, where: str, sources: list[dict[str, Any]]) -> None:
    names = [source_of(one) for one in sources]
    for one in sources:
        for name in one:
            if name not in READ and one[name] not in OFF:
                sheet.miss(f"{key}.{name}", f"{name} of {one.get('path')} is not used: other rows or other texts")
        if len(names_of(one.get("data_files"))) > 1:
            sheet.miss(f"{key}.data_files", "several files: list them in data.train")
    sheet.take(key, where, names[0] if len(names) == 1 else names)


def take_rows(sheet: Sheet, sources: list[dict[str, Any]]) -> None:
    """Take the format and the columns that the types of the data sets say."""
    types = [one.get("type") for one in sources]
    first = types[0]
    if any(other != first for other in types):
        sheet.miss("datasets.type", "data sets of several types: one recipe reads one format; set data.format")
    elif isinstance(first, dict):
        take_written_prompt(sheet, first)
    elif (name := str(first).partition(".")[0].partition(":")[0]) in FORMATS:
        note = "Alpaca's prompt" if name == "alpaca" else ""
        sheet.set("data.format", FORMATS[name])
        sheet.take("datasets.type", "data.format", FORMATS[name], note)
        if str(first) != name:
            sheet.miss("datasets.type", f"{first}: the variant's own prompt is not used")
    else:
        sheet.miss("datasets.type", f"{first}: rows of this type are not read; set data.format, template and columns")
    for one in sources:
        take_columns(sheet, one)


def take_columns(sheet: Sheet, one: dict[str, Any]) -> None:
    if one.get("field") and one["field"] != "text":
        sheet.take("datasets.field", "data.columns.text", one["field"])
    if one.get("field_messages") not in (None, "messages", "conversations"):
        sheet.take("datasets.field_messages", "data.columns.messages", one["field_messages"])
    mapping = one.get("message_property_mappings") or {}
    role, content = one.get("message_field_role"), one.get("message_field_content")
    pair = (mapping.get("role", role or "role"), mapping.get("content", content or "content"))
    if pair not in (("role", "content"), ("from", "value")):
        sheet.miss("datasets.message_property_mappings", f"turns with {pair} are not read: rename them")
    if one.get("chat_template") not in (None, "tokenizer_default"):
        sheet.miss("datasets.chat_template", "the tokenizer's own template is used: prompts may differ")
    if names_of(one.get("roles_to_train")) not in (
        [],
        ["assistant"],
        ["gpt"],
        ["assistant", "gpt"],
        ["gpt", "assistant"],
    ):
        sheet.miss("datasets.roles_to_train", "only the assistant's turns are supervised")
    if one.get("train_on_eos") not in (None, "turn"):
        sheet.miss("datasets.train_on_eos", "the end of each answer is supervised, and no other")
    if one.get("revision"):
        sheet.miss("datasets.revision", "the newest version is read")
    if one.get("conversation"):
        sheet.miss("datasets.conversation", "the tokenizer's own template is used: prompts may differ")


def take_written_prompt(sheet: Sheet, kind: dict[str, Any]) -> None:
    """Take a prompt that the file itself writes, with the columns of instruction, input and output."""
    template = kind.get("format") or "{instruction}"
    for role in ("instruction", "input"):
        template = template.replace(f"{{{role}}}", f"{{{kind.get(f'field_{role}') or role}}}")
    sheet.set("data.format", "completion")
    sheet.take("datasets.type.format", "data.template", template)
    sheet.take("datasets.type.field_output", "data.columns.completion", kind.get("field_output") or "output")
    for name in ("no_input_format", "system_prompt", "field_system", "system_format"):
        if kind.get(name):
            sheet.miss(f"datasets.type.{name}", "one template is used for all rows, without a system text")
