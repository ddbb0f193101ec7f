"""Only the assistant's turns, with their end markers, are supervised."""

from __future__ import annotations

import copy
import json
from collections import Counter

import pytest

from peftlab.data.chat import ChatTemplate, render_prompt
from peftlab.data.dataset import load_data
from peftlab.data.examples import content_key
from peftlab.data.notes import note_data
from peftlab.data.token_rows import IGNORED
from peftlab.data.tokens import cut_prompt, encode_chat_prompt
from peftlab.errors import DataError
from peftlab.recipe.schema import Recipe
from peftlab.tasks import TASKS
from peftlab.tasks.formats import Chat, as_messages
from tests.data.tokenising import tokenise

from .conftest import CHAT_TEMPLATE

MARKED = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|end|>{% endgeneration %}{% else %}{{ m['content'] }}<|end|>{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
DEFAULT_SYSTEM = "{% if messages[0]['role'] != 'system' %}<|system|>be kind<|end|>\n{% endif %}"
# Shows the reasoning of the last answer only, as some reasoning models' templates do.
FORGETFUL = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] if loop.last else m['content'].split('=')[-1] }}"
    "<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
STRICT = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('must start with user') }}{% endif %}"


def chat(*contents, first="user"):
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return Chat([{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)])


def with_template(tokenizer, template):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    return tokenizer


def tokenise_one(example, tokenizer, max_length=128):
    counts = Counter()
    rows = tokenise([example], tokenizer, counts, max_length=max_length).rows
    return (rows[0] if rows else None), counts


def supervised_parts(row, tokenizer):
    """Return the runs of supervised tokens as texts."""
    parts, last = [], None
    for place in (row.labels != IGNORED).nonzero()[0]:
        if last is None or place != last + 1:
            parts.append([])
        parts[-1].append(row.labels[place])
        last = place
    return [tokenizer.decode(part) for part in parts]


@pytest.mark.parametrize("template", [None, MARKED])
def test_every_assistant_turn_and_its_end_is_supervised(bpe, template):
    tokenizer = with_template(bpe, template) if template else bpe
    example = chat("the cat", "sat on the mat", "the cat", " the city")
    row, _ = tokenise_one(example, tokenizer)
    assert row.input_ids.tolist() == tokenizer.apply_chat_template(example.messages, return_dict=False)
    assert supervised_parts(row, tokenizer) == ["sat on the mat<|end|>", " the city<|end|>"]


def test_same_content_in_both_roles_is_supervised_in_one(bpe):
    row, _ = tokenise_one(chat("sat", "sat", "sat", "sat"), bpe)
    assert supervised_parts(row, bpe) == ["sat<|end|>", "sat<|end|>"]
    first = (row.labels != IGNORED).argmax()
    assert bpe.decode(row.input_ids[:first]) == "<|bos|><|user|>sat<|end|>\n<|assistant|>"


def test_default_system_prompt_of_a_template_is_not_supervised(bpe):
    tokenizer = with_template(bpe, DEFAULT_SYSTEM + bpe.chat_template)
    row, _ = tokenise_one(chat("the cat", "sat"), tokenizer)
    assert supervised_parts(row, tokenizer) == ["sat<|end|>"]


def test_chat_may_begin_with_the_assistant(bpe):
    row, _ = tokenise_one(chat("the cat", "sat", "the mat", first="assistant"), bpe)
    assert supervised_parts(row, bpe) == ["the cat<|end|>", "the mat<|end|>"]


def test_chat_without_an_answer_is_dropped_and_counted(bpe):
    row, counts = tokenise_one(chat("the cat"), bpe)
    assert row is None and counts["dropped"] == 1


def test_what_a_template_leaves_of_earlier_turns_is_supervised_with_and_without_marks(bpe):
    example = chat("the cat", "so = sat", "the cat", "so = sat")
    tokenizer = with_template(bpe, FORGETFUL)
    row, _ = tokenise_one(example, tokenizer)
    assert supervised_parts(row, tokenizer) == [" sat<|end|>", "so = sat<|end|>"]
    marked = FORGETFUL.replace("{{ m['content'] if", "{% generation %}{{ m['content'] if").replace(
        "<|end|>\n", "<|end|>{% endgeneration %}\n"
    )
    tokenizer = with_template(bpe, marked)
    row, _ = tokenise_one(example, tokenizer)
    assert supervised_parts(row, tokenizer) == ["the cat<|end|>", " sat<|end|>", "the cat<|end|>", "so = sat<|end|>"]


def test_what_a_template_refuses_and_a_missing_template_are_one_line(bpe):
    with pytest.raises(DataError, match=r"the chat that begins 'the cat': .* refuses it: must start with user"):
        tokenise_one(chat("the cat", "sat", first="assistant"), with_template(bpe, STRICT + bpe.chat_template))
    with pytest.raises(DataError, match="the model's tokenizer has no chat template; use an instruction-tuned model"):
        tokenise_one(chat("the cat", "sat"), with_template(bpe, None))


def test_a_chat_that_the_template_refuses_stops_or_is_dropped_as_the_recipe_says(load, bpe):
    tokenizer = with_template(bpe, STRICT + bpe.chat_template)
    refused = [{"role": "assistant", "content": "sat"}, *QUESTIONS]
    with pytest.raises(DataError, match="the chat that begins 'sat': the model's chat template refuses it: must start"):
        load(QUESTIONS, refused, tokenizer=tokenizer)
    dataset = load(*[QUESTIONS] * 3, refused, tokenizer=tokenizer, on_error="skip", allow_dropped=0.25)
    assert len(dataset.train) == 3 and dataset.report["train"]["dropped"] == 1
    assert dataset.report["train"]["reasons"] == {"the model's chat template refuses it: must start with user": 1}
    with pytest.raises(DataError, match="1 of 4 rows have no supervised token, more than data.allow_dropped"):
        load(*[QUESTIONS] * 3, refused, tokenizer=tokenizer, on_error="skip")


def test_long_chat_keeps_its_opening_token_and_the_answer(bpe):
    example = chat("the cat sat on the mat in the city centre", "the cat")
    full, _ = tokenise_one(example, bpe)
    row, counts = tokenise_one(example, bpe, 9)
    assert row.input_ids.tolist() == [bpe.bos_token_id, *full.input_ids[-9:-1]], "the line break is not supervised"
    assert supervised_parts(row, bpe) == ["the cat<|end|>"]
    assert (counts["truncated"], counts["lost_supervised"]) == (1, 0)


def test_generation_prompt_is_the_beginning_of_the_training_row(bpe):
    example = chat("the cat", "sat")
    row, _ = tokenise_one(example, bpe)
    ids = encode_chat_prompt(bpe, render_prompt(example.messages[:1], bpe))
    assert ids == row.input_ids[: len(ids)].tolist()
    assert bpe.decode(ids).endswith("<|assistant|>")


QUESTIONS = [
    {"role": "user", "content": "the cat"},
    {"role": "assistant", "content": "sat"},
    {"role": "user", "content": "the mat"},
    {"role": "assistant", "content": "is two"},
]
THOUGHT = [
    {"role": "user", "content": "two"},
    {"role": "assistant", "content": "<think>\nfacts\n</think>\n\nfour"},
]
TOOLS = [{"type": "function", "function": {"name": "look_up"}}]
WITH_TOOLS = "{% if tools %}{{ tools | tojson }}\n{% endif %}" + CHAT_TEMPLATE.replace(
    "m['content'] }}", "m['content'] or '' }}{{ m.tool_calls[0].function.name if m.tool_calls else '' }}"
)
UNENDED = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def flagged(**flags):
    """Return two questions with their answers, the first of which has flags."""
    return [QUESTIONS[0], {**QUESTIONS[1], **flags}, *QUESTIONS[2:]]


def parts_of(messages, tokenizer, **settings):
    rows = tokenise([Chat(messages)], tokenizer, max_length=128, **settings).rows
    return supervised_parts(rows[0], tokenizer)


@pytest.fixture
def load(tmp_path, section, bpe):
    """Load chats (messages, or whole rows) as training and evaluation rows."""

    def loaded(*chats, tokenizer=bpe, **fields):
        path = tmp_path / "chat.jsonl"
        lines = [json.dumps(one if isinstance(one, dict) else {"messages": one}) for one in chats]
        path.write_text("\n".join(lines))
        chosen = section(train=str(path), evaluation=str(path), format="chat", **fields)
        return load_data(chosen, tokenizer, TASKS["causal-lm"], 0)

    return loaded


@pytest.mark.parametrize("template", [None, MARKED])
def test_the_last_answer_alone_can_be_supervised(bpe, template):
    tokenizer = with_template(bpe, template or bpe.chat_template)
    assert parts_of(QUESTIONS, tokenizer) == ["sat<|end|>", "is two<|end|>"]
    assert parts_of(QUESTIONS, tokenizer, supervise="last") == ["is two<|end|>"]


@pytest.mark.parametrize("template", [None, MARKED])
@pytest.mark.parametrize("flag", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"weight": 1, "train": False}])
def test_a_flagged_answer_is_not_supervised(bpe, template, flag):
    tokenizer = with_template(bpe, template or bpe.chat_template)
    assert parts_of(flagged(**flag), tokenizer) == ["is two<|end|>"]
    assert parts_of(flagged(weight=1, train=None), tokenizer) == ["sat<|end|>", "is two<|end|>"]


def test_flags_that_are_neither_nought_nor_one_are_refused():
    with pytest.raises(ValueError, match=r"weight of a 'assistant' message is 0 or 1, not 0\.5"):
        as_messages(flagged(weight=0.5))


@pytest.mark.parametrize("template", [None, MARKED])
def test_the_thinking_part_is_supervised_unless_the_recipe_says_not(bpe, template):
    tokenizer = with_template(bpe, template or bpe.chat_template)
    assert parts_of(THOUGHT, tokenizer) == ["<think>\nfacts\n</think>\n\nfour<|end|>"]
    assert parts_of(THOUGHT, tokenizer, thinking=False) == ["four<|end|>"]
    assert parts_of(QUESTIONS, tokenizer, thinking=False) == ["sat<|end|>", "is two<|end|>"]


def test_text_parts_of_a_content_are_joined_and_others_refused():
    parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "cat"}]
    assert as_messages([{"role": "user", "content": parts}]) == [QUESTIONS[0]]
    with pytest.raises(ValueError, match="the content of a 'user' message has a part of type image; only text is read"):
        as_messages([{"role": "user", "content": [*parts, {"type": "image", "image": "x"}]}])


def test_a_message_without_content_needs_a_tool_call():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look_up", "arguments": {}}}]}
    assert as_messages([call]) == [call]
    with pytest.raises(ValueError, match="the content of a 'assistant' message must be text"):
        as_messages([{"role": "assistant", "content": None}])


def test_the_column_of_tools_goes_to_the_template_and_may_be_empty(load, bpe):
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look_up", "arguments": {}}}]}
    messages = [QUESTIONS[0], call, {"role": "tool", "content": "four"}, QUESTIONS[1]]
    tokenizer = with_template(bpe, WITH_TOOLS)
    dataset = load(
        {"messages": messages, "tools": TOOLS}, {"messages": messages, "tools": json.dumps(TOOLS)}, messages,
        tokenizer=tokenizer,
    )  # fmt: skip
    first, second, third = dataset.train
    assert first.input_ids.tolist() == tokenizer.apply_chat_template(messages, tools=TOOLS, return_dict=False)
    assert second.input_ids.tolist() == first.input_ids.tolist()
    assert third.input_ids.tolist() == tokenizer.apply_chat_template(messages, return_dict=False)
    assert supervised_parts(first, tokenizer) == ["look_up<|end|>", "sat<|end|>"]
    named = load({"messages": messages, "functions": TOOLS}, tokenizer=tokenizer, tools="functions")
    assert named.train[0].input_ids.tolist() == first.input_ids.tolist()
    with pytest.raises(DataError, match=r"jsonl:1: column 'tools': needs a list of tools \{type, f.*not int 3"):
        load({"messages": messages, "tools": 3})


def test_a_chat_without_tools_keeps_the_fingerprint_that_it_had_before_chats_had_tools():
    assert content_key(Chat(QUESTIONS)) == json.dumps({"messages": QUESTIONS}, sort_keys=True, ensure_ascii=False)


def test_arguments_of_the_template_are_those_of_rows_and_prompts(load, bpe):
    tokenizer = with_template(bpe, "{{ mood }}" + bpe.chat_template)
    dataset = load(QUESTIONS, tokenizer=tokenizer, template_kwargs={"mood": "kind"})
    own = tokenizer.apply_chat_template(QUESTIONS, return_dict=False, mood="kind")
    assert dataset.train[0].input_ids.tolist() == own
    assert dataset.prompts[0].input_ids == own[: len(dataset.prompts[0].input_ids)]
    assert render_prompt(QUESTIONS[:3], tokenizer, {"mood": "kind"}) == dataset.prompts[0].text
    with pytest.raises(DataError, match=r"data\.template_kwargs\.tokenize: is set by the program"):
        load(QUESTIONS, template_kwargs={"tokenize": True})


def test_the_end_markers_that_are_supervised_stop_generation(load, bpe):
    assert load(QUESTIONS).stop_ids == (bpe.convert_tokens_to_ids("<|end|>"),)
    plain = with_template(bpe, bpe.chat_template.replace("<|end|>", " (over)"))
    dataset = load(QUESTIONS, tokenizer=plain)
    assert (dataset.stop_ids, dataset.stop_texts) == ((), ("(over)",))
    assert dataset.prompts[0].references == ("is two",)


def test_a_turn_that_ends_otherwise_in_the_last_place_has_both_ends_supervised_and_stopped_at(load, bpe):
    last = "{% if loop.last and not add_generation_prompt %}<|system|>{% else %}<|end|>{% endif %}"
    tokenizer = with_template(bpe, bpe.chat_template.replace("<|end|>", last))
    (row,) = load(QUESTIONS, tokenizer=tokenizer).train
    assert supervised_parts(row, bpe) == ["sat<|end|>", "is two<|system|>"]
    ids = bpe.convert_tokens_to_ids(["<|end|>", "<|system|>"])
    assert sorted(load(QUESTIONS, tokenizer=tokenizer).stop_ids) == sorted(ids)


def test_the_end_of_a_part_of_an_answer_is_no_end_of_the_answer(load, bpe):
    last = "{% if loop.last and not add_generation_prompt %}<|system|>{% else %}<|end|>{% endif %}"
    thoughts = "{% if m.thinking and loop.last %}{{ m.thinking }}<|end|><|assistant|>{% endif %}"
    source = bpe.chat_template.replace("<|end|>", last).replace("{{ m['content'] }}", thoughts + "{{ m['content'] }}")
    tokenizer = with_template(bpe, source)
    thinking = [*QUESTIONS[:3], {**QUESTIONS[3], "thinking": "facts"}]
    dataset = load(thinking, QUESTIONS, QUESTIONS, tokenizer=tokenizer)
    assert supervised_parts(dataset.train[0], bpe) == ["sat<|end|>", "facts<|end|><|assistant|>is two<|system|>"]
    assert dataset.stop_ids == (bpe.convert_tokens_to_ids("<|system|>"),)
    about_it = [QUESTIONS[0], {"role": "assistant", "content": "sat <|end|> mat"}]
    assert len(load(about_it, QUESTIONS, tokenizer=tokenizer).stop_ids) == 2


def test_both_ends_are_found_behind_a_system_text_that_ends_as_turns_do(load, bpe):
    last = "{% if loop.last and not add_generation_prompt %}<|system|>{% else %}<|end|>{% endif %}"
    system = "<|system|>be kind<|end|>\n"
    tokenizer = with_template(bpe, system + bpe.chat_template.replace("<|end|>", last))
    (row,) = load(QUESTIONS, tokenizer=tokenizer).train
    assert supervised_parts(row, bpe) == ["sat<|end|>", "is two<|system|>"]


def test_a_special_token_at_the_end_of_an_answers_own_text_is_not_an_end_marker(load, bpe):
    messages = [QUESTIONS[0], {"role": "assistant", "content": "sat <|system|>"}]
    dataset = load(messages, tokenizer=with_template(bpe, UNENDED))
    assert dataset.stop_ids == () and dataset.report["train"]["unended"] == 1


def test_an_answer_with_two_marks_is_one_answer_with_one_end(load, bpe):
    twice = (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %} = {% generation %}four<|end|>{% endgeneration %}"
        "{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}"
    )
    tokenizer = with_template(bpe, twice)
    assert parts_of(QUESTIONS, tokenizer, supervise="last") == ["is two", " four<|end|>"]
    assert parts_of(flagged(weight=0), tokenizer) == ["is two", " four<|end|>"]
    dataset = load(QUESTIONS, tokenizer=tokenizer)
    assert dataset.prompts[0].references == ("is two four",)
    assert dataset.prompts[0].text.endswith("the mat<|end|><|assistant|>")
    assert "unended" not in dataset.report["train"]


def test_an_answer_is_asked_for_with_the_whole_generation_prompt_where_a_mark_begins_inside_it(load, bpe):
    headed = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}<|assistant|>Answer: {{ m.content }}"
        "<|end|>{% endgeneration %}{% else %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>Answer:{% endif %}"
    )
    tokenizer = with_template(bpe, headed)
    assert parts_of(QUESTIONS, tokenizer) == ["<|assistant|>Answer: sat<|end|>", "<|assistant|>Answer: is two<|end|>"]
    dataset = load(QUESTIONS, tokenizer=tokenizer)
    (prompt,) = dataset.prompts
    assert prompt.references == ("is two",)
    assert prompt.input_ids == encode_chat_prompt(tokenizer, render_prompt(QUESTIONS[:3], tokenizer))
    assert "unprompted" not in dataset.report["train"]
    other = with_template(bpe, headed.replace("Answer:{% endif %}", "Reply:{% endif %}"))
    assert load(QUESTIONS, tokenizer=other).report["train"]["unprompted"] == 1


def test_what_a_template_makes_uncertain_is_noted(load, bpe):
    recipe = Recipe.model_validate(
        {
            "model": {"name": "x"},
            "method": {"type": "lora"},
            "data": {"train": "x", "format": "chat"},
            "training": {"steps": 1, "learning_rate": 1},
        }
    )

    def notes(*chats, **options):
        return "\n".join(note_data(recipe, load(*chats, **options).report))

    assert "cannot learn to stop" in notes(QUESTIONS, tokenizer=with_template(bpe, UNENDED))
    assert "cannot learn to stop" not in notes(QUESTIONS)
    dated = with_template(bpe, "{{ day or strftime_now('%d %b') }}" + bpe.chat_template)
    assert "rows differ from day to day" in notes(QUESTIONS, tokenizer=dated)
    assert "rows differ from day to day" not in notes(QUESTIONS, tokenizer=dated, template_kwargs={"day": "today"})
    special = [{"role": "user", "content": "the <|end|>"}, QUESTIONS[1]]
    assert "1 of 2 rows contain special tokens in their own text" in notes(special, QUESTIONS)
    opening = with_template(
        bpe, bpe.chat_template.replace("<|assistant|>{% endif %}", "<|assistant|><think>{% endif %}")
    )
    assert "in 1 of 1 rows the last answer does not begin as the template's" in notes(QUESTIONS, tokenizer=opening)
    assert "does not begin" not in notes(
        [QUESTIONS[0], {"role": "assistant", "content": "<think>x"}], tokenizer=opening
    )
    tools = {"messages": QUESTIONS, "tools": [{"type": "function", "function": {"name": "sat"}}]}
    assert "1 of 1 rows have tools, which the model's chat template does not write" in notes(tools)
    thinking = [QUESTIONS[0], {"role": "assistant", "content": "sat", "reasoning_content": "two"}]
    assert "in 1 of 1 rows the last answer has reasoning in a field of its own" in notes(thinking)
    # Writes the system text only into a last question, so that no row with an answer has it.
    late = with_template(
        bpe,
        "{% set head = messages[0].content if messages[0].role == 'system' else '' %}{% for m in messages %}"
        "{% if m.role == 'user' %}<|user|>{{ head if loop.last }}{{ m.content }}<|end|><|assistant|>"
        "{% elif m.role == 'assistant' %}{{ m.content }}<|end|>{% endif %}{% endfor %}",
    )
    found = notes([{"role": "system", "content": "on the mat"}, *QUESTIONS], tokenizer=late)
    assert "in 1 of 1 rows the model's chat template leaves out a message" in found and "another prompt" in found
    assert notes(QUESTIONS, tokenizer=late) == notes(QUESTIONS)
    counting = with_template(bpe, "{{ messages | length }} turns\n" + bpe.chat_template)
    assert "another prompt" in notes(QUESTIONS, tokenizer=counting)


def test_rows_whose_answers_are_not_certain_are_dropped_with_their_reason(load, bpe):
    forgetting = (
        "{% for m in messages %}{% if m.role == 'user' or loop.last %}<|{{ m.role }}|>{{ m.content }}<|end|>"
        "{% endif %}{% endfor %}"
    )
    tokenizer = with_template(bpe, forgetting)
    with pytest.raises(DataError, match=r"none of 1 rows has a supervised token; the template leaves out an answer"):
        load(QUESTIONS, tokenizer=tokenizer)
    report = load(QUESTIONS, QUESTIONS[:2], tokenizer=tokenizer, allow_dropped=0.5).report["train"]
    assert (report["rows"], report["dropped"], report["unclear"]) == (1, 1, 1)
    assert report["reasons"] == {"the template leaves out an answer": 1}


def test_a_prompt_that_is_cut_keeps_its_opening_token_and_system_text(load, bpe):
    system = {"role": "system", "content": "be"}
    messages = [system, {"role": "user", "content": "the cat sat on the mat " * 8}, QUESTIONS[1]]
    dataset = load(messages, max_length=40)
    (prompt,) = dataset.prompts
    kept = bpe.apply_chat_template([system], return_dict=False)
    assert prompt.lead == len(kept) and prompt.input_ids[: len(kept)] == kept
    assert prompt.input_ids == dataset.evaluation[0].input_ids[: len(prompt.input_ids)].tolist()
    assert dataset.report["evaluation"]["prompts_cut"] == 1
    assert cut_prompt([*range(20)], 3, 8) == [0, 1, 2, 15, 16, 17, 18, 19]
    assert cut_prompt([*range(20)], 7, 8) == [0, *range(13, 20)]


def test_what_follows_the_last_answer_is_cut_before_its_prompt(load, bpe):
    """Nothing that is learnt depends on it. Here a last question has no answer, and an answer is not supervised."""
    rest = {"role": "user", "content": "the cat sat on the mat " * 8}
    for tail in ([rest], [rest, QUESTIONS[1] | {"weight": 0}]):
        dataset = load([*QUESTIONS[:2], *tail], max_length=40)
        whole = bpe.apply_chat_template([*QUESTIONS[:2], *tail], return_dict=False)
        alone = load(QUESTIONS[:2], max_length=40)
        assert len(whole) > 40 and dataset.train[0].input_ids.tolist() == whole[:40]
        assert dataset.prompts == alone.prompts and dataset.train[0].supervised == alone.train[0].supervised
        assert dataset.report["train"]["lost_supervised"] == dataset.report["train"].get("cut_turns", 0) == 0
        assert dataset.report["train"]["cut_tokens"] == len(whole) - 40


def test_the_prompt_of_an_answer_that_takes_all_the_room_is_cut_by_itself(load, bpe):
    """A row begins with the answer then, but no text could be generated after a prompt without tokens."""
    plain = bpe.apply_chat_template(QUESTIONS[:1], return_dict=False, add_generation_prompt=True)
    answer = len(bpe.apply_chat_template(QUESTIONS[:2], return_dict=False)) - len(plain)
    for room in (answer, answer + 1):
        (prompt,) = load(QUESTIONS[:2], max_length=room).prompts
        assert 0 < len(prompt.input_ids) <= room


def exchange(n, length=6):
    return [{"role": "user", "content": f"ask{n} " + "a " * length}, {"role": "assistant", "content": f"say{n}"}]


def test_a_chat_that_is_too_long_loses_its_oldest_messages_whole_and_keeps_the_system_text(bpe):
    system = {"role": "system", "content": "be kind"}
    messages = [system, *exchange(0), *exchange(1), *exchange(2)]
    expected = tokenise([Chat([system, *exchange(1), *exchange(2)])], bpe, max_length=999).rows[0]
    counts = Counter()
    for limit in (len(expected.input_ids), len(expected.input_ids) + 3):
        (row,), (prompt,) = tokenise([Chat(messages)], bpe, counts, max_length=limit, prompts=True)
        assert row.input_ids.tolist() == expected.input_ids.tolist()
        assert row.labels.tolist() == expected.labels.tolist()
        assert row.input_ids[: len(prompt.input_ids)].tolist() == prompt.input_ids and prompt.cut > 0
    assert (counts["cut_turns"], counts["truncated"], counts["lost_supervised"]) == (4, 2, 2)
    assert counts["lost_tokens"] == 2 * len(bpe("say0<|end|>", add_special_tokens=False)["input_ids"])


def test_a_last_question_that_is_too_long_alone_is_cut_and_never_its_answer(bpe):
    messages = [*exchange(0), *exchange(1, length=80)]
    counts = Counter()
    row = tokenise([Chat(messages)], bpe, counts, max_length=40).rows[0]
    assert len(row.input_ids) == 40 and supervised_parts(row, bpe) == ["say1<|end|>"]
    assert counts["cut_turns"] == 2


def test_cutting_at_the_left_keeps_the_tokens_as_earlier_versions_did(bpe):
    messages = [*exchange(0), *exchange(1)]
    whole = tokenise([Chat(messages)], bpe, max_length=999).rows[0].input_ids.tolist()
    row = tokenise([Chat(messages)], bpe, max_length=len(whole) - 3, truncate="left").rows[0]
    assert row.input_ids.tolist() == [whole[0], *whole[4:]]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ strftime_now('%d %B %Y, %A') }}|", "31 December 1999, Friday|"),
        ("{% set f = '%Y-' + '%m-%-d' %}{{ strftime_now(f) }}|", "1999-12-31|"),
        ("  {% if strftime_now is defined %}\n{{ strftime_now('%H:%M') }}|{% endif %}\n", "00:00|"),
        (
            "\n{% macro now() %}{{ strftime_now('%j %%') }}{% endmacro %}\n"
            "{% for m in messages %}{{ now() }}{% endfor %}",
            "\n365 %",
        ),
        ("\n \n  {{ messages[0].content }}", "\n \n  x"),
    ],
)
def test_a_day_of_the_recipe_is_what_a_template_writes_and_nothing_else_changes(bpe, template, text):
    chat_template = ChatTemplate(with_template(bpe, template), day="1999-12-31")
    assert chat_template.write([{"role": "user", "content": "x"}]) == text


def test_a_stopped_clock_changes_no_other_text(bpe):
    messages = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]
    for source in (STRICT, DEFAULT_SYSTEM, ""):
        tokenizer = with_template(bpe, source + bpe.chat_template)
        assert ChatTemplate(tokenizer, day="2026-01-31").try_write(messages) == ChatTemplate(tokenizer).try_write(
            messages
        )
