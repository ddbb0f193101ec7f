"""A run on chats: what it generates, from prompts of every kind, stops where training taught it, and is kept."""

from __future__ import annotations

import io
import json

import pytest
import sacrebleu
from transformers import AutoTokenizer, GenerationConfig

from peftlab.cli.app import run as run_command
from peftlab.errors import DataError, UsageError
from peftlab.recipe.schema import Recipe
from peftlab.runs.bench import with_format
from peftlab.runs.directory import RunDirectory
from peftlab.runs.display import LineDisplay, NoDisplay
from peftlab.runs.generation import generate, generate_all
from peftlab.runs.requests import ask, encode, read_chat, read_prompts
from peftlab.runs.run import train
from peftlab.tasks.formats import without_answers
from tests.apart import call_apart
from tests.runs.chats import WORDS, chat_sections
from tests.runs.recipes import shallow_recipe


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The recipe and directory of a run that knows its chats by heart; the file that it was trained on is gone."""
    folder = tmp_path_factory.mktemp("chats")
    recipe = Recipe.model_validate(chat_sections(folder))
    train(recipe, display=LineDisplay(io.StringIO()))  # its lines have metrics without a value
    (folder / "chats.jsonl").rename(folder / "elsewhere.jsonl")
    return recipe, RunDirectory.open(folder / "run")


def command(capsys, *arguments):
    capsys.readouterr()
    code = run_command([str(argument) for argument in arguments])
    out, errors = capsys.readouterr()
    return code, out, errors


def test_supervised_prompts_are_answered_exactly_and_answers_end(trained):
    _, directory = trained
    result = directory.read_result()
    assert result.metrics["after"]["exact_match"] == 1.0 > result.metrics["before"]["exact_match"]
    lines = [json.loads(line) for line in directory.generations.read_text().splitlines()]
    after = [line for line in lines if line["when"] == "after"]
    assert [line["output"] for line in after] == [f"going {word}" for word in WORDS]
    assert all(line["ended"] and line["scores"]["exact_match"] == 1 for line in after)
    assert {line["when"] for line in lines} == {"before", "after"} and len(lines) == 8


def test_an_undefined_metric_is_null_with_its_reason_and_the_settings_are_stored(trained):
    result = trained[1].read_result()  # answers of two words have no 4-gram
    assert result.metrics["after"]["bleu"] is None and "four tokens" in result.undefined["after"]["bleu"]
    assert "tok:13a" in result.signatures["bleu"] and result.signatures["exact_match"] == "normalise:none"


def test_the_end_of_a_turn_is_in_the_saved_generation_config(trained):
    tokenizer = AutoTokenizer.from_pretrained(trained[1].weights)
    ends = GenerationConfig.from_pretrained(trained[1].weights).eos_token_id
    assert set(ends) == {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|turn|>")}


def test_a_fresh_process_generates_from_the_run_alone(trained, tmp_path):
    _, directory = trained
    code = call_apart(ask_apart, directory.path, tmp_path / "answer", log=tmp_path / "log")
    assert code == 0, (tmp_path / "log").read_text()
    assert (tmp_path / "answer").read_text() == "going east"


def ask_apart(folder, answer):
    answer.write_text(generate(folder, "walk east"))


def test_several_turns_and_a_system_message_are_rendered_as_in_training(trained):
    recipe, _ = trained
    tokenizer = AutoTokenizer.from_pretrained(recipe.model.name)
    messages = [{"role": "user", "content": "walk west"}]
    rendered = encode(ask(recipe, "walk west", system="Be brief."), recipe, tokenizer)
    whole = tokenizer.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, *messages], tokenize=False, add_generation_prompt=True
    )
    assert rendered.text == whole
    system = tokenizer("[|system|]\nBe brief.<|turn|>\n", add_special_tokens=False)["input_ids"]
    assert rendered.lead == len(system) and rendered.ids[: rendered.lead] == system


def test_template_arguments_come_from_the_recipe_and_tools_from_the_chat(trained, tmp_path):
    recipe, _ = trained
    changed = recipe.model_copy(update={"data": recipe.data.model_copy(update={"template_kwargs": {"opening": "So "}})})
    chat = {"messages": [{"role": "user", "content": "hi"}], "tools": [{"name": "clock"}]}
    (tmp_path / "chat.json").write_text(json.dumps(chat))
    rendered = encode(
        read_chat(changed, tmp_path / "chat.json"), changed, AutoTokenizer.from_pretrained(recipe.model.name)
    )
    assert rendered.text == "[|user|]\nhi<|turn|>\ntools: clock\n[|assistant|]\nSo "


def test_a_file_of_prompts_is_answered_in_batches_as_one_by_one(trained, tmp_path, capsys):
    _, directory = trained
    (tmp_path / "prompts.txt").write_text("".join(f"walk {word}\n\n" for word in (*WORDS, "far away")))
    rows = [{"messages": [{"role": "user", "content": f"walk {word}"}]} for word in (*WORDS, "far away")]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "plain.jsonl").write_text("\n".join(json.dumps({"prompt": f"walk {word}"}) for word in WORDS))
    found = {}
    for name, size in (("prompts.txt", 3), ("prompts.jsonl", 2), ("plain.jsonl", 4)):
        out = tmp_path / f"{name}.out"
        code, text, _ = command(
            capsys, "generate", directory.path, f"evaluation.batch_size={size}", "--prompts", tmp_path / name,
            "--output", out,
        )  # fmt: skip
        assert code == 0 and "answers in" in text
        found[name] = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["output"] for row in found["plain.jsonl"]] == [f"going {word}" for word in WORDS]
    assert found["prompts.txt"] == found["prompts.jsonl"]
    assert found["prompts.txt"][:4] == found["plain.jsonl"]
    assert found["prompts.txt"][4]["output"] == generate(directory.path, "walk far away")


@pytest.mark.parametrize(
    ("arguments", "content", "code", "message"),
    [
        (["--prompts", "FILE"], "", 4, "contains no prompts"),
        (["--prompts", "missing.txt"], "", 4, "missing.txt: cannot be read"),
        (["--chat", "FILE"], "{", 4, "is not valid JSON"),
        (["--chat", "FILE"], "[]", 4, "has no messages"),
        (["--chat", "FILE"], '[{"role": "assistant", "content": "x"}]', 2, "end the chat with what it should answer"),
        (
            ["--chat", "FILE", "--system", "s"],
            '[{"role": "system", "content": "x"}]',
            2,
            "begins with a system message",
        ),
        (["hello", "--prompts", "FILE"], "x", 2, "give one of a PROMPT, --chat FILE and --prompts FILE"),
        ([" "], "", 2, "the prompt is empty"),
    ],
)
def test_what_cannot_be_asked_is_one_line(trained, tmp_path, capsys, arguments, content, code, message):
    file = tmp_path / "file.txt"
    file.write_text(content)
    given = [str(file) if argument == "FILE" else argument for argument in arguments]
    found, out, errors = command(capsys, "generate", trained[1].path, *given)
    assert (found, out) == (code, "") and message in errors and len(errors.splitlines()) == 1


def test_prompts_of_a_template_are_made_of_its_columns(tmp_path):
    recipe = with_format(shallow_recipe("lora", tmp_path / "run"), "completion")
    templated = recipe.model_copy(update={"data": recipe.data.model_copy(update={"template": "{name}: {what}\nText:"})})
    (tmp_path / "rows.jsonl").write_text('{"name": "Aromi", "what": "a pub"}\n')
    (request,) = read_prompts(templated, tmp_path / "rows.jsonl")
    assert request.text == "Aromi: a pub\nText:"
    with pytest.raises(UsageError, match="--system: this run's data.format is completion"):
        ask(recipe, "x", system="y")
    with pytest.raises(DataError, match="has no column 'prompt'; its columns: name, what"):
        read_prompts(recipe, tmp_path / "rows.jsonl")


HUMAN, GPT = {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}
QUESTION = {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    ("layout", "row"),
    [
        ("chat", {"conversations": [HUMAN]}),
        ("chat", {"conversations": [HUMAN, GPT]}),
        ("chat", {"conversations": json.dumps([HUMAN, GPT]), "id": 7}),
        ("chat", {"prompt": [QUESTION]}),
        ("chat", {"prompt": json.dumps([QUESTION]), "completion": json.dumps([{"role": "assistant", "content": "b"}])}),
        ("chat", {"instruction": "a"}),
        ("chat", {"prompt": "a", "instruction": "b"}),
        ("completion", {"instruction": "a", "output": "b"}),
    ],
)
def test_rows_of_public_layouts_are_asked_without_their_answers(tmp_path, layout, row):
    recipe = with_format(shallow_recipe("lora", tmp_path / "run"), layout)
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (request,) = read_prompts(recipe, tmp_path / "rows.jsonl")
    if layout == "chat":
        assert [(m["role"], m["content"]) for m in request.chat.messages] == [("user", "a")]
    else:
        assert request.text.endswith("### Instruction:\na\n\n### Response:\n") and "b" not in request.text[-20:]


def test_answers_at_the_end_of_messages_are_left_out_however_they_are_written():
    assistant = {"role": "assistant", "content": "b"}
    for written in ([QUESTION, assistant], json.dumps([QUESTION, assistant, assistant])):
        assert without_answers(written) == [QUESTION]
    assert without_answers([HUMAN, GPT, HUMAN]) == [HUMAN, GPT, HUMAN]
    assert without_answers("plain") == "plain"


def test_bleu_before_and_after_is_sacrebleus_on_the_saved_texts(tmp_path):
    sections = shallow_recipe("lora", tmp_path / "run").model_dump()
    sections["evaluation"] |= {"metrics": ["loss", "bleu", "chrf"]}
    sections["evaluation"]["generation"] |= {"max_new_tokens": 12, "rows": 8}
    result = train(Recipe.model_validate(sections), display=NoDisplay())
    lines = [json.loads(line) for line in (tmp_path / "run" / "generations.jsonl").read_text().splitlines()]
    for when in ("before", "after"):
        rows = [line for line in lines if line["when"] == when]
        streams = [[row["references"][0] for row in rows]]
        outputs = [row["output"] for row in rows]
        assert result.metrics[when]["bleu"] == sacrebleu.corpus_bleu(outputs, streams, force=True).score
        assert result.metrics[when]["chrf"] == sacrebleu.corpus_chrf(outputs, streams).score


def test_a_run_answers_all_requests_of_its_recipe(trained):
    answers = generate_all(trained[1].path, lambda recipe: [ask(recipe, f"walk {word}") for word in WORDS])
    assert [(one.text, one.ended, one.cut) for one in answers] == [(f"going {word}", True, 0) for word in WORDS]
