"""A fast tokenizer in GGUF: its tokens, their kinds, merges, and what llama.cpp calls its way of splitting a text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from peftlab.errors import ModelError, listed

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
# How a text is split before merging, as (kind, pattern), by llama.cpp's name for it.
SPLITS = {
    "gpt-2": [("ByteLevel", True)],
    "smollm": [("Digits", True), ("ByteLevel", True)],
    "qwen2": [("Split", QWEN2), ("ByteLevel", False)],
    "llama-bpe": [("Split", LLAMA3), ("ByteLevel", False)],
}
# What a tokenizer that was converted from SentencePiece does before merging, as llama.cpp does it by itself.
SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
PREPENDED = {"type": "Prepend", "prepend": "\u2581"}
NORMALISERS = ([SPACES], [PREPENDED, SPACES])


def write_tokenizer(
    writer: Any, tokenizer: Any, rows: int, stop_ids: Sequence[int], *, chats: bool = False
) -> list[str]:
    """Add a tokenizer to a GGUF file, and return what llama.cpp does otherwise, a line each.

    `rows` is the model's vocabulary, `stop_ids` the tokens that end an answer, `chats` says that texts begin with a
    special token. Raises ModelError for a tokenizer that llama.cpp would read otherwise.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"GGUF: {type(tokenizer).__name__} is not a fast tokenizer")
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model = content["model"]
    if model["type"] != "BPE":
        raise ModelError(f"GGUF: a tokenizer of type {model['type']} cannot be written; byte-pair encoding (BPE) can")
    _refuse_other_additions(tokenizer)
    merges = [one if isinstance(one, str) else " ".join(one) for one in model["merges"]]
    _add_tokens(writer, tokenizer, content, rows)
    if model.get("byte_fallback"):
        refuse_other_steps(content)
        notes = _add_sentencepiece(writer, tokenizer, merges, rows, chats=chats)
    else:
        notes = []
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(name_split(content))
        writer.add_token_merges(merges)
    return [*notes, *_add_special(writer, tokenizer, stop_ids)]


def _refuse_other_additions(tokenizer: Any) -> None:
    """Raise ModelError where a tokenizer adds more to a text than its opening and its closing token."""
    known = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    text = tokenizer("a", add_special_tokens=False)["input_ids"]
    ids = tokenizer("a")["input_ids"]
    for place in (0, -1):
        if len(ids) > len(text) and ids[place] in known:
            del ids[place]
    if ids != text:
        added = listed([repr(token) for token in tokenizer.convert_ids_to_tokens(ids) if token is not None])
        raise ModelError(f"GGUF: this tokenizer adds other tokens to a text than its bos and eos token ({added})")


def refuse_other_steps(content: Mapping[str, Any]) -> None:
    """Raise ModelError where a tokenizer with byte tokens prepares a text otherwise than SentencePiece does."""
    normaliser, steps = content.get("normalizer") or {}, content.get("pre_tokenizer") or {}
    parts = normaliser.get("normalizers", [normaliser] if normaliser else [])
    kind = steps.get("type")
    metaspace = kind == "Metaspace" and steps.get("split") is False and not parts
    # A split at spaces finds none where they have been replaced.
    unsplit = kind is None or (kind == "Split" and steps.get("pattern") == {"String": " "})
    if not metaspace and not (unsplit and parts in NORMALISERS):
        names = listed([one["type"] for one in (*parts, steps) if one] or ["nothing"])
        raise ModelError(
            f"GGUF: llama.cpp has no name for how this tokenizer prepares a text ({names}); the model would get other "
            "tokens than in training"
        )


def name_split(content: Mapping[str, Any]) -> str:
    """Return llama.cpp's name of how a tokenizer splits texts. Raises ModelError for one without a name."""
    steps = content.get("pre_tokenizer") or {}
    parts = [_describe_step(step) for step in steps.get("pretokenizers", [steps])]
    prefixed = any(step.get("add_prefix_space") for step in steps.get("pretokenizers", [steps]))
    normalised = (content.get("normalizer") or {}).get("type")
    for name, wanted in SPLITS.items():
        if parts == wanted and not prefixed and normalised in (None, "NFC"):
            return name
    raise ModelError(
        f"GGUF: llama.cpp has no name for how this tokenizer splits a text ({', '.join(kind for kind, _ in parts)}); "
        "the model would get other tokens than in training"
    )


def _describe_step(step: Mapping[str, Any]) -> tuple[str, Any]:
    kind = step.get("type", "nothing")
    pattern = step.get("pattern") or {}
    detail = {
        "ByteLevel": step.get("use_regex", True),
        "Digits": step.get("individual_digits"),
        "Split": pattern.get("Regex"),
    }
    return kind, detail.get(kind)


def _add_tokens(writer: Any, tokenizer: Any, content: Mapping[str, Any], rows: int) -> None:
    """Add every token and its kind; rows of the model without a token are unused."""
    names = {number: token for token, number in tokenizer.get_vocab().items()}
    added = {one["id"]: one for one in content["added_tokens"]}
    special = set(tokenizer.all_special_ids)
    tokens, kinds = [], []
    for number in range(rows):
        if number not in names:
            tokens.append(f"[PAD{number}]")
            kinds.append(UNUSED)
            continue
        tokens.append(names[number])
        is_control = number in special or added.get(number, {}).get("special", False)
        is_byte = content["model"].get("byte_fallback") and _is_byte(names[number])
        plain = USER_DEFINED if number in added else BYTE if is_byte else NORMAL
        kinds.append(CONTROL if is_control else plain)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _add_sentencepiece(writer: Any, tokenizer: Any, merges: Sequence[str], rows: int, *, chats: bool) -> list[str]:
    """Add a tokenizer that was converted from SentencePiece, and return a note where llama.cpp has another rule.

    llama.cpp merges the pair whose token has the highest score, tokenizers the pair that comes first: a token's score
    is the place of its first merge. It adds a space before a text and after each special token, or before none.
    """
    places: dict[str, int] = {}
    for place, merge in enumerate(merges):
        places.setdefault(merge.replace(" ", ""), place)
    names = {number: token for token, number in tokenizer.get_vocab().items()}
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([-float(places.get(names.get(number, ""), len(merges))) for number in range(rows)])
    first = _is_prefixed(tokenizer.tokenize("a"))
    mark = tokenizer.bos_token or tokenizer.eos_token or ""
    later = _is_prefixed(tokenizer.tokenize(f"{mark}a")[bool(mark) :])
    writer.add_add_space_prefix(later if chats else first)
    if first == later:
        return []
    kept, other = ("after special tokens", "before a text") if chats else ("before a text", "after special tokens")
    return [
        f"this tokenizer adds a space {'before a text' if first else 'after special tokens'} only, llama.cpp at both "
        f"places or none: the file is right {kept}, as in the run's rows, and not {other}"
    ]


def _is_prefixed(pieces: Sequence[str]) -> bool:
    return bool(pieces) and pieces[0].startswith("\u2581")


def _add_special(writer: Any, tokenizer: Any, stop_ids: Sequence[int]) -> list[str]:
    known = {"bos": writer.add_bos_token_id, "eos": writer.add_eos_token_id, "unk": writer.add_unk_token_id}
    known["pad"] = writer.add_pad_token_id
    for name, add in known.items():
        if (number := getattr(tokenizer, f"{name}_token_id", None)) is not None:
            add(number)
    turns = [number for number in stop_ids if number != tokenizer.eos_token_id]
    for number, add in zip(turns, (writer.add_eot_token_id, writer.add_eom_token_id), strict=False):
        add(number)
    ids = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id])
    writer.add_add_eos_token(tokenizer.eos_token_id is not None and ids[-1:] == [tokenizer.eos_token_id])
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
    lost = [repr(token) for token in tokenizer.convert_ids_to_tokens(turns[2:])]
    return [f"GGUF has no place for {listed(lost)}, at which answers end too"] if lost else []
