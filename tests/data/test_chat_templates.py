"""Whatever a template does, what is supervised are the assistant's turns and their end markers, exactly."""

from __future__ import annotations

import copy
import random

import pytest

from peftlab.data.chat import ChatSettings, encode_chats, encode_prompt_text, render_prompt
from peftlab.tasks.formats import Chat
from tests.data.chats import CASES, make_chat, make_tokenizer

KINDS = ("bytes", "pieces", "words")


def with_case(kind, case):
    tokenizer = copy.copy(make_tokenizer(kind))
    tokenizer.chat_template = case.source
    return tokenizer


def texts_of(chat, tokenizer, kind):
    """Return the supervised pieces as text: decoded, or where words lose their blanks, cut from the rendered text."""
    if kind != "words":
        return [
            tokenizer.decode(chat.ids[: turn.last])[len(tokenizer.decode(chat.ids[: turn.first])) :]
            for turn in chat.turns
        ]
    offsets = tokenizer(chat.text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [chat.text[offsets[turn.first][0] : offsets[turn.last - 1][1]] for turn in chat.turns]


def comparable(texts, kind, case):
    """Return texts without what a tokenizer of words cannot show, and without blanks where the template adds some."""
    if kind == "words":
        return [joined for text in texts if (joined := "".join(text.split()))]
    return [text for text in (one.strip() if case.loose else one for one in texts) if text]


def check_chat(case, kind, tokenizer, messages, tools):
    """Assert that one chat is supervised as its messages say; return whether it was dropped with a reason."""
    (chat,) = encode_chats([Chat(messages, tools)], tokenizer, ChatSettings(arguments=case.arguments))
    own = tokenizer.apply_chat_template(messages, tools=tools, return_dict=False, **case.arguments)
    assert chat.ids.tolist() == own or (chat.cuts and tokenizer.decode(chat.ids) == tokenizer.decode(own))
    if chat.fault is not None:
        assert not chat.turns
        return True
    found, wanted = texts_of(chat, tokenizer, kind), case.expected(messages)
    assert comparable(found, kind, case) == comparable(wanted, kind, case)
    ends = {None if turn.stop is None else tokenizer.convert_ids_to_tokens(turn.stop) for turn in chat.turns}
    assert ends <= {case.stop, case.final or case.stop}
    check_prompt(case, chat, tokenizer, messages, tools)
    return False


def check_prompt(case, chat, tokenizer, messages, tools):
    """Assert that the prompt of a last answer is encoded as its row begins, if the answer begins with a letter."""
    if not chat.turns or chat.turns[-1].message != len(messages) - 1:
        return
    turn = chat.turns[-1]
    answer = case.written(messages[turn.message].get("content") or "", True).removeprefix(case.begins)
    if answer[:1].isascii() and answer[:1].isalpha():
        prompt = render_prompt(messages[: turn.message], tokenizer, case.arguments, tools)
        assert encode_prompt_text(tokenizer, prompt, chat.cuts).tolist() == chat.ids[: turn.first].tolist()


def check_chats(count, seed):
    """Check `count` random chats over every template and tokenizer; return how many were dropped."""
    rng, dropped = random.Random(seed), 0
    for number in range(count):
        case, kind = CASES[number % len(CASES)], KINDS[number // len(CASES) % len(KINDS)]
        messages, tools = make_chat(case, rng)
        dropped += check_chat(case, kind, with_case(kind, case), messages, tools)
    return dropped


def test_random_chats_are_supervised_in_the_assistants_turns_and_their_ends():
    assert check_chats(510, seed=1) < 0.05 * 510


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_of_twenty_thousand_chats_none_is_supervised_wrongly():
    assert check_chats(20_000, seed=2) < 0.05 * 20_000


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_plain_chat_is_kept_and_its_prompt_is_the_beginning_of_its_row(case, kind):
    tokenizer = with_case(kind, case)
    messages = [
        {"role": "user", "content": "two and two"},
        {"role": "assistant", "content": case.begins + ("x\n</think>\n\nred" if case.begins else "red")},
        {"role": "user", "content": "Paris"},
        {"role": "assistant", "content": case.begins + ("x\n</think>\n\nuser" if case.begins else "user")},
    ]
    assert not check_chat(case, kind, tokenizer, messages, None)
    (chat,) = encode_chats([Chat(messages)], tokenizer, ChatSettings(arguments=case.arguments))
    prompt = encode_prompt_text(tokenizer, render_prompt(messages[:3], tokenizer, case.arguments))
    assert prompt.tolist() == chat.ids[: chat.turns[-1].first].tolist()


def test_an_answer_that_begins_with_a_line_break_begins_with_a_token_of_its_own():
    """`assistant\\n\\nred` is encoded as a model meets it: the header `assistant\\n`, and then the answer."""
    tokenizer = with_case("bytes", next(case for case in CASES if case.name == "an end after each turn"))
    messages = [{"role": role, "content": text} for role, text in [("user", "red"), ("assistant", "\nred")] * 2]
    (chat,) = encode_chats([Chat(messages)], tokenizer, ChatSettings())
    question = ["<|turn|>", "user", "\n", "red", "<|close|>", "\n", "<|turn|>", "assistant", "\n"]
    answer = ["\n", "red", "<|close|>"]
    assert [tokenizer.decode([number]) for number in chat.ids] == [*question, *answer, "\n"] * 2
    assert chat.supervised.tolist() == [*[False] * len(question), *[True] * len(answer), False] * 2
    prompt = encode_prompt_text(tokenizer, render_prompt(messages[:3], tokenizer), chat.cuts)
    assert prompt.tolist() == chat.ids[: chat.turns[-1].first].tolist()
    assert encode_prompt_text(tokenizer, render_prompt(messages[:1], tokenizer)).tolist() == prompt[:9].tolist()
