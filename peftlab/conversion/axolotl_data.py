"""Axolotl's data sets: their sources, the types of their rows, and what of a row is supervised."""

from __future__ import annotations

from typing import Any

from peftlab.conversion.lora import names_of
from peftlab.conversion.names import take_packing
from peftlab.conversion.sheet import Sheet, is_off

# What `datasets: type` says of rows.
FORMATS = {
    "alpaca": "completion",
    "completion": "text",
    "pretrain": "text",
    "chat_template": "chat",
    "sharegpt": "chat",
}
# Names of kinds of files, which stand where a data set of the hub or a folder does.
KINDS = ("json", "csv", "parquet", "text", "arrow")
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
    if sources := sheet.entries("datasets"):
        take_sources(sheet, "datasets", "data.train", sources)
        take_rows(sheet, sources)
    if tests := sheet.entries("test_datasets"):
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


def sources_of(one: dict[str, Any]) -> list[str]:
    """Return a data set as recipes name it: its files, or hub name with subset and split."""
    files, name = names_of(one.get("data_files")), str(one.get("path"))
    if files and (name in KINDS or one.get("path") is None):
        return files
    if files and name.startswith((".", "/", "~")):
        return [f"{name.rstrip('/')}/{file}" for file in files]
    name += f":{one['name']}" if one.get("name") else ""
    return [name + (f"[{one['split']}]" if one.get("split") not in (None, "train") else "")]


def columns_of(one: dict[str, Any]) -> dict[str, str]:
    """Return the columns of a data set that have other names than recipes read by themselves."""
    text, messages = one.get("field"), one.get("field_messages")
    columns = {} if text in (None, "text") else {"text": str(text)}
    return columns | ({} if messages in (None, "messages", "conversations") else {"messages": str(messages)})


def take_sources(sheet: Sheet, key: str, where: str, sources: list[dict[str, Any]]) -> None:
    differ = any(columns_of(one) != columns_of(sources[0]) for one in sources)
    names: list[Any] = []
    for one in sources:
        own = columns_of(one) if differ else {}
        names += [{"source": name, "columns": own} if own else name for name in sources_of(one)]
        for name in one:
            if name not in READ and not is_off(one[name]):
                sheet.miss(f"{key}.{name}", f"{name} of {one.get('path')} is not used: other rows or other texts")
        if one.get("data_files") and sources_of(one)[0].partition(":")[0].partition("[")[0] == str(one.get("path")):
            sheet.miss(f"{key}.data_files", f"all files of {one.get('path')} are read: name files that are here")
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
    if all(columns_of(one) == columns_of(sources[0]) for one in sources):
        for role, name in columns_of(sources[0]).items():
            sheet.take(f"datasets.{'field' if role == 'text' else 'field_messages'}", f"data.columns.{role}", name)
    for one in sources:
        miss_turns(sheet, one)


def miss_turns(sheet: Sheet, one: dict[str, Any]) -> None:
    """Say what of a data set's chats is read or supervised otherwise."""
    given = one.get("message_property_mappings")
    mapping = given if isinstance(given, dict) else {}
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
    template = str(kind.get("format") or "{instruction} {input} ")
    for role in ("instruction", "input"):
        template = template.replace(f"{{{role}}}", f"{{{kind.get(f'field_{role}') or role}}}")
    sheet.set("data.format", "completion")
    sheet.take("datasets.type.format", "data.template", template)
    sheet.take("datasets.type.field_output", "data.columns.completion", kind.get("field_output") or "output")
    if str(kind.get("no_input_format") or "{instruction} ") != str(kind.get("format")):
        sheet.miss("datasets.type.no_input_format", "rows without an input have the template of the others")
    for name in ("system_prompt", "field_system", "system_format"):
        if kind.get(name):
            sheet.miss(f"datasets.type.{name}", "one template is used for all rows, without a system text")
