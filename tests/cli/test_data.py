"""`peftlab data`: each fault that is planted in rows is shown, and shown rows are those that training takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig

from peftlab.cli.app import run
from peftlab.data.dataset import load_data
from peftlab.models.load import load_tokenizer
from peftlab.recipe.load import load_recipe
from tests.data.conftest import train_bpe

RECIPE = """
model: {name: MODEL}
method: {type: lora, rank: 2}
data: {train: ROWS, max_length: 128}
training: {steps: 2, batch_size: 2, learning_rate: 1e-3}
evaluation: {generation: {examples: 0}}
"""
MARKED = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }}{% endgeneration %}<|end|>\n{% else %}{{ m['content'] }}<|end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model of sizes alone, and a tokenizer with a chat template; the same with an end that is not supervised."""
    folder = tmp_path_factory.mktemp("models")
    for name, template in (("plain", None), ("masked", MARKED)):
        tokenizer = train_bpe()
        tokenizer.chat_template = template or tokenizer.chat_template
        tokenizer.save_pretrained(folder / name)
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
        ).save_pretrained(folder / name)
    return folder


def show(folder: Path, rows: list[dict], *arguments: str, capfd, model: str = "plain") -> tuple[int, dict]:
    """Run the command on rows, and return its exit code and its one JSON object."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.replace("MODEL", str(folder / model)).replace("ROWS", str(path)))
    code = run(["data", str(recipe), *arguments, "--json"])
    return code, json.loads(capfd.readouterr().out)


def answered(*texts: str) -> dict:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]}


CHATS = [answered("the cat", "sat on the mat"), answered("two and two", "four", "even", "yes")]


def test_rows_are_those_of_training_each_with_its_prompt_and_its_supervised_pieces(folder, capfd):
    code, shown = show(folder, CHATS, "data.format=chat", capfd=capfd)
    assert code == 0 and [row["index"] for row in shown["rows"]] == [0, 1]
    assert shown["rows"][0]["supervised"] == ["sat on the mat<|end|>"]
    assert shown["rows"][1]["supervised"] == ["four<|end|>", "yes<|end|>"]
    assert shown["rows"][1]["prompt"].endswith("<|user|>even<|end|>\n<|assistant|>")
    assert shown["ends"] == ["<|end|>"] and not any(row["faults"] for row in shown["rows"])
    recipe = load_recipe(folder / "recipe.yaml", ["data.format=chat"])
    trained = load_data(recipe.data, load_tokenizer(recipe.model), recipe.task, 0)
    assert [row["ids"] for row in shown["rows"]] == [row.input_ids.tolist() for row in trained.train]


def test_an_end_marker_outside_the_marks_is_shown_as_not_supervised(folder, capfd):
    _, shown = show(folder, CHATS, "data.format=chat", model="masked", capfd=capfd)
    assert shown["ends"] == [] and shown["rows"][0]["supervised"] == ["sat on the mat"]
    assert all("an answer ends without a supervised end marker" in row["faults"] for row in shown["rows"])
    assert any("cannot learn to stop" in note for note in shown["notes"])


def test_json_has_all_rows_unless_a_number_is_asked_for(folder, capfd):
    rows = [{"text": f"the cat {number}"} for number in range(7)]
    for asked, expected in [((), 7), (("--rows=2",), 2), (("--row=5", "--row=1"), 2)]:
        _, shown = show(folder, rows, "data.format=text", *asked, capfd=capfd)
        assert len(shown["rows"]) == expected


def test_text_that_brings_special_tokens_of_its_own_is_shown(folder, capfd):
    rows = [{"prompt": "<|bos|>the cat", "completion": " sat"}, {"prompt": "the mat", "completion": " sat"}]
    _, shown = show(folder, rows, "data.format=completion", capfd=capfd)
    assert "the text contains special tokens" in shown["rows"][0]["faults"] and not shown["rows"][1]["faults"]


def test_a_token_across_the_boundary_of_prompt_and_completion_is_shown(folder, capfd):
    rows = [{"prompt": "the ci", "completion": "ty centre"}, {"prompt": "the city", "completion": " centre"}]
    _, shown = show(folder, rows, "data.format=completion", capfd=capfd)
    crossing = "a token crosses from the prompt into the completion and is not supervised"
    assert [crossing in row["faults"] for row in shown["rows"]] == [True, False]


def test_a_row_that_occurs_twice_or_in_another_part_is_shown(folder, capfd):
    (folder / "held.jsonl").write_text(json.dumps(CHATS[1]) + "\n")
    held = f"data.evaluation={folder / 'held.jsonl'}"
    _, shown = show(folder, [*CHATS, CHATS[0]], "data.format=chat", held, capfd=capfd)
    assert [row["faults"] for row in shown["rows"]] == [[], ["also in data.evaluation"], ["the same content as row 0"]]


def test_an_empty_answer_is_shown_first_among_the_oddest(folder, capfd):
    rows = [*CHATS, answered("say nothing", "")]
    _, shown = show(folder, rows, "data.format=chat", "--worst", "--rows=1", capfd=capfd)
    assert [(row["index"], row["faults"]) for row in shown["rows"]] == [(2, ["the answer is empty"])]


def test_data_that_training_would_refuse_is_shown_with_the_reason_and_its_exit_code(folder, capfd):
    rows = [{"messages": [{"role": "user", "content": "alone"}]}]
    code, shown = show(folder, rows, "data.format=chat", capfd=capfd)
    assert code == 4 and "none of 1 rows has a supervised token" in shown["refusal"]
    assert shown["rows"][0]["ids"] == [] and shown["rows"][0]["faults"][0].startswith("dropped")


def test_refused_data_still_has_its_facts_where_some_rows_can_be_trained_on(folder, capfd):
    rows = [*CHATS, {"messages": [{"role": "user", "content": "alone"}]}]
    code, shown = show(folder, rows, "data.format=chat", capfd=capfd)
    assert code == 4 and "1 of 3 rows have no supervised token" in shown["refusal"]
    assert shown["data"]["train"]["rows"] == 2 and shown["steps"]["rows"] == 2


def test_steps_and_padding_are_those_of_the_batches(folder, capfd):
    rows = [{"text": "the cat"}, {"text": "the cat sat on the mat the cat sat on the mat"}]
    _, shown = show(folder, rows, "data.format=text", "training.batch_size=2", "training.steps=3", capfd=capfd)
    short, long = (len(row["ids"]) for row in shown["rows"])
    assert shown["steps"]["padding"] == pytest.approx(1 - (short + long) / (2 * long))
    assert (shown["steps"]["tokens"], shown["steps"]["epochs"]) == (short + long, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--row=9"], "--row 9: data.train has rows 0 to 1"),
        (["--part=test"], "--part test: the recipe has no rows of this part; set data.test"),
        (["--row=0", "--worst"], "--row names rows itself; remove --rows and --worst"),
    ],
)
def test_a_choice_of_rows_that_is_not_there_is_one_line(folder, capfd, options, message):
    code, shown = show(folder, CHATS, "data.format=chat", *options, capfd=capfd)
    assert code == 2 and message in json.dumps(shown)


def test_the_page_escapes_rows_and_marks_what_is_supervised(folder, capfd, tmp_path):
    rows = [answered("<script>alert(1)</script>", "a <b> c\x1b")]
    page = tmp_path / "data.html"
    show(folder, rows, "data.format=chat", f"--html={page}", capfd=capfd)
    text = page.read_text()
    assert "<script" not in text and "<mark>a &lt;b&gt; c\\x1b&lt;|end|&gt;</mark>" in text
    code, shown = show(folder, rows, "data.format=chat", f"--html={tmp_path / 'none' / 'x.html'}", capfd=capfd)
    assert code == 8 and "cannot be written" in json.dumps(shown)
