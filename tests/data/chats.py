"""Chat templates with the habits of the field's families, each with what of an answer it writes; and tokenizers."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

END, OPEN, FINAL = "<|close|>", "<|turn|>", "<|done|>"
LAST_QUESTION = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}"
)
ANSWER = "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
TURN = "<|turn|>{{ m.role }}\n{{ m.content }}<|close|>\n"
EACH = "{% for m in messages %}"
CALLS = "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}"


def as_it_is(content: str, last: bool) -> str:
    return content


def thought(content: str, last: bool) -> str:
    """What the template `thinking of the last answer` writes of an answer."""
    said = content.split("</think>")[-1].lstrip("\n")
    before = content.split("</think>")[0].replace("<think>", "").strip("\n") if "</think>" in content else ""
    return f"<think>\n{before}\n</think>\n\n{said}" if last else said


@dataclass(frozen=True)
class Case:
    """`written` is what the template makes of an answer's content, `end` what it writes after it.

    `final` is the special token that ends a chat's last turn in place of `end`, where the template has such a one.
    `loose` compares without whitespace at the ends of an answer; `first` says who may begin a chat.
    """

    name: str
    source: str
    written: Callable[[str, bool], str] = as_it_is
    end: str = END
    stop: str | None = END
    final: str | None = None
    loose: bool = False
    system: bool = True
    tools: bool = False
    thinking: bool = False
    begins: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)

    def expected(self, messages: list[dict[str, Any]]) -> list[str]:
        """Return the supervised text of every answer, from the messages alone."""
        last = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
        return [
            self.written(m.get("content") or "", i > last).removeprefix(self.begins)
            + calls_of(m)
            + (self.final if self.final and i == len(messages) - 1 else self.end)
            for i, m in enumerate(messages)
            if m["role"] == "assistant"
        ]


def calls_of(message: dict[str, Any]) -> str:
    import json

    calls = message.get("tool_calls") or []
    return "".join(f"<call>{json.dumps(call['function'], ensure_ascii=False)}</call>" for call in calls)


CASES = [
    Case(
        "marks with the end inside",
        EACH + "<|turn|>{{ m.role }}>\n{%- if m.role == 'assistant' -%}\n  {% generation -%}\n {{ m.content }}<|close|>"
        "{%- endgeneration -%}\n{% else -%} {{ m.content }}<|close|>{% endif %}\n{% endfor %}",
    ),
    Case(
        "marks inside a macro",
        "{% macro say(m) %}<|turn|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|close|>"
        "{% endgeneration %}{% else %}{{ m.content }}<|close|>{% endif %}{% endmacro %}"
        "{% for m in messages %}{{ say(m) }}\n{% endfor %}" + ANSWER,
    ),
    Case(
        "marks with the end outside",
        EACH + "<|turn|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}<|close|>\n{% endfor %}" + ANSWER,
        end="",
        stop=None,
    ),
    Case("an end after each turn", EACH + TURN + "{% endfor %}" + ANSWER),
    Case(
        "a system text of its own",
        "{% if messages[0].role != 'system' %}<|turn|>system\nBe brief.<|close|>\n{% endif %}"
        + EACH
        + TURN
        + "{% endfor %}"
        + ANSWER,
    ),
    Case(
        "a prompt that ends with a space",
        EACH + "{{ 'Bot: ' if m.role == 'assistant' else 'Person: ' }}{{ m.content }}"
        "{% if m.role == 'assistant' %}<|close|>{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}Bot: {% endif %}",
        loose=True,
    ),
    Case(
        "a final token after the chat",
        EACH + TURN + "{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n{% else %}<|done|>{% endif %}",
    ),
    Case(
        "another end of the last turn",
        EACH + "<|turn|>{{ m.role }}\n{{ m.content }}{% if loop.last and m.role == 'assistant' and not"
        " add_generation_prompt %}<|done|>{% else %}<|close|>{% endif %}\n{% endfor %}" + ANSWER,
        final=FINAL,
    ),
    Case(
        "contents trimmed",
        EACH + TURN.replace("m.content", "m.content | trim") + "{% endfor %}" + ANSWER,
        written=lambda content, last: content.strip(),
    ),
    Case(
        "contents in lower case",
        EACH + TURN.replace("m.content", "m.content | lower") + "{% endfor %}" + ANSWER,
        written=lambda content, last: content.lower(),
    ),
    Case(
        "thinking of the last answer",
        LAST_QUESTION + "{% for m in messages %}<|turn|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% set said = m.content.split('</think>')[-1].lstrip('\n') %}{% if loop.index0 > ns.last %}<think>\n"
        "{{ m.content.split('</think>')[0].replace('<think>', '').strip('\n') if '</think>' in m.content else '' }}"
        "\n</think>\n\n{% endif %}{{ said }}{% else %}{{ m.content }}{% endif %}<|close|>\n{% endfor %}" + ANSWER,
        written=thought,
        thinking=True,
    ),
    Case(
        "a prompt that opens the thinking",
        EACH + TURN + "{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n<think>\n{% endif %}",
        begins="<think>\n",
        thinking=True,
    ),
    Case(
        "an empty thinking block in the prompt",
        EACH + "<|turn|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last and not think %}<think>\n\n</think>\n\n"
        "{% endif %}{{ m.content }}<|close|>\n{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n"
        "{% if not think %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
        arguments={"think": False},
    ),
    Case("a date", "Today is {{ strftime_now('%d %B %Y') }}.\n" + EACH + TURN + "{% endfor %}" + ANSWER),
    Case(
        "no end",
        EACH + "{{ '# Reply\n' if m.role == 'assistant' else '# Ask\n' }}{{ m.content }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}# Reply\n{% endif %}",
        end="",
        stop=None,
        loose=True,
    ),
    Case(
        "instructions in brackets",
        "{% if messages[0].role == 'system' %}{% set head = messages[0].content + '\n\n' %}"
        "{% set rest = messages[1:] %}{% else %}{% set head = '' %}{% set rest = messages %}{% endif %}"
        "{% for m in rest %}{% if m.role == 'user' %}"
        "<|turn|>[INST] {{ (head if loop.first else '') + m.content }} [/INST]{% else %} {{ m.content }} <|close|>"
        "{% endif %}{% endfor %}",
        end=" <|close|>",
        loose=True,
    ),
    Case(
        "tools before the last question, and calls",
        LAST_QUESTION + "{% for m in messages %}{% if tools and loop.index0 == ns.last %}<|turn|>tools\n"
        "{{ tools | tojson }}<|close|>\n{% endif %}<|turn|>{{ m.role }}\n{{ m.content or '' }}" + CALLS + "<|close|>\n"
        "{% endfor %}" + ANSWER,
        tools=True,
    ),
    Case(
        "no generation prompt",
        EACH + "<|turn|>{{ m.role }}\n{{ m.content }}<|close|>\n{% endfor %}",
    ),
    Case(
        "an end in plain text",
        EACH
        + "{{ m.role }}:\n{{ m.content }}\n(over)\n{% endfor %}{% if add_generation_prompt %}assistant:\n{% endif %}",
        end="\n(over)",
        stop=None,
        loose=True,
    ),
]
WORDS = [
    "red", "Paris", "two and two", "naïve", "日本語", "👩\u200d👩\u200d👧", "e\u0301", "def f(x):\n    return x",
    "a\tb", "«да»", "…", "\u00a0", "#", "x" * 30, "3.14", "[INST]", "user", "assistant", "Bot:", "don't",
]  # fmt: skip
# A line break at the beginning of an answer is one token with the header's own in many vocabularies.
BEGINNINGS = [*[""] * 8, " ", "  ", "\t", "\n", "\n\n", " \n"]
ENDINGS = ["", "", " ", "  ", "\n", "\n\n", "\t", " \n "]
SPECIAL = [END, OPEN, FINAL, "<think>", "(over)"]


def make_text(rng: random.Random) -> str:
    """Return a text: at times empty, with blanks at either end, or with the text of special tokens."""
    if rng.random() < 0.05:
        return ""
    words = [rng.choice(SPECIAL if rng.random() < 0.06 else WORDS) for _ in range(rng.randint(1, 5))]
    return rng.choice(BEGINNINGS) + rng.choice([" ", "", "\n"]).join(words) + rng.choice(ENDINGS)


def make_chat(case: Case, rng: random.Random) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """Return the messages and the tools of a chat that the template of `case` accepts."""
    messages: list[dict[str, Any]] = []
    if case.system and rng.random() < 0.3:
        messages.append({"role": "system", "content": make_text(rng)})
    for _ in range(rng.randint(1, 4)):
        messages.append({"role": "user", "content": make_text(rng)})
        if case.tools and rng.random() < 0.4:
            call = {"name": "look_up", "arguments": {"key": make_text(rng)}}
            content = None if rng.random() < 0.5 else make_text(rng)
            messages.append({"role": "assistant", "content": content, "tool_calls": [{"function": call}]})
            messages.append({"role": "tool", "content": make_text(rng)})
        messages.append({"role": "assistant", "content": case.begins + make_answer(case, rng)})
    if rng.random() < 0.1:
        messages.append({"role": "user", "content": make_text(rng)})
    tools = [{"type": "function", "function": {"name": "look_up"}}] if case.tools and rng.random() < 0.7 else None
    return messages, tools


def make_answer(case: Case, rng: random.Random) -> str:
    if case.begins:
        return f"{rng.choice(WORDS)}\n</think>\n\n{make_text(rng)}"
    if case.thinking and rng.random() < 0.5:
        return f"<think>\n{rng.choice(WORDS)}\n</think>\n\n{make_text(rng)}"
    return make_text(rng)


@cache
def make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of a kind, `bytes`, `pieces` or `words`, trained on the words here; special tokens added."""
    texts = [*WORDS, "".join(case.source for case in CASES), "system tool Be brief. Today is look_up key name"] * 4
    tokenizer = {"bytes": _bytes, "pieces": _pieces, "words": _words}[kind](texts)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=None if kind == "bytes" else "<unk>")
    fast.add_special_tokens({"additional_special_tokens": [OPEN, END, FINAL]})
    return fast


def _bytes(texts: list[str]) -> Tokenizer:
    """Byte-level BPE that keeps line breaks from what follows, as Llama 3's does, and blanks out of its offsets."""
    tokenizer = Tokenizer(models.BPE())
    words = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer


def _pieces(texts: list[str]) -> Tokenizer:
    """BPE of pieces with `▁` for a space and bytes for what it does not know, as sentencepiece makes them."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Metaspace(prepend_scheme="first")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    known = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=700, special_tokens=known, show_progress=False))
    return tokenizer


def _words(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=["<unk>"], show_progress=False))
    return tokenizer
