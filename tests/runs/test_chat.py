"""`chat`: several runs and their base on one loaded model, each with its own history; pieces are the whole answer."""

from __future__ import annotations

import io
import json
import sys

import pytest
import torch

from peftlab.cli.answer import run_command as run
from peftlab.cli.app import run as run_command
from peftlab.errors import UsageError
from peftlab.evaluation.streaming import PieceStreamer
from peftlab.models.share import share_weights
from peftlab.parameters.trainable import named_parameters
from peftlab.recipe.schema import Recipe
from peftlab.runs.chat import name_runs, open_conversation
from peftlab.runs.display import NoDisplay
from peftlab.runs.generation import generate
from peftlab.runs.run import train
from tests.runs.chats import WORDS, chat_sections
from tests.runs.recipes import shallow_recipe

METHODS = {
    "lora": {"type": "lora", "rank": 8, "unfreeze": ["embed_tokens"]},
    "olora": {"type": "lora", "rank": 4, "init": "olora"},
    "bitfit": {"type": "bitfit"},
    "full": {"type": "full"},
    "adapters": {"type": "adapters", "bottleneck": 8},
    "prefix": {"type": "prefix", "length": 4},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A run of each method on one base; only the first is trained long enough to know its chats."""
    folder = tmp_path_factory.mktemp("chats")
    sections = chat_sections(folder)
    sections["evaluation"]["metrics"] = ["loss"]
    for number, (name, method) in enumerate(METHODS.items()):
        steps = sections["training"]["steps"] if number == 0 else 3
        training = sections["training"] | {"steps": steps, "learning_rate": 5e-3}
        changed = {"method": method, "training": training, "run": sections["run"] | {"output": str(folder / name)}}
        train(Recipe.model_validate(sections | changed), display=NoDisplay())
    return {name: folder / name for name in METHODS}


@pytest.fixture(scope="module")
def conversation(folders):
    return open_conversation(list(folders.values()))


@pytest.fixture(autouse=True)
def fresh(conversation):
    conversation.reset()
    conversation.use(["lora"])
    conversation.set_system(None)
    conversation.change(["temperature=0", "max_new_tokens=16", "seed=0"])


def test_each_run_answers_as_it_does_alone_whatever_is_loaded_beside_it(conversation, folders):
    conversation.use(list(METHODS))
    found = {reply.run: reply.text for reply in conversation.say("walk east")}
    assert found == {name: generate(folder, "walk east") for name, folder in folders.items()}
    assert found["lora"] == "going east" and len(set(found.values())) >= 4


def test_the_base_keeps_every_byte_and_its_memory_is_shared(conversation):
    """The oracle is the checkpoint's own file."""
    from transformers import AutoModelForCausalLM

    base = named_parameters(conversation.runs["base"].model)
    fresh = AutoModelForCausalLM.from_pretrained(conversation.runs["lora"].recipe.model.name)
    assert all(torch.equal(one, base[name]) for name, one in named_parameters(fresh).items())
    places = {one.data_ptr() for one in base.values()}
    shared = {
        name: sum(one.data_ptr() in places for one in run.model.parameters()) for name, run in conversation.runs.items()
    }
    assert shared["base"] == len(base) == shared["adapters"] and shared["lora"] == len(base) - 1
    assert shared["full"] == shared["olora"] == 0


def test_a_method_that_writes_to_its_own_parameters_leaves_the_shared_ones(conversation):
    base = conversation.runs["base"].model
    copied = share_weights(base, {"model.norm.weight"})
    with torch.no_grad():
        copied.get_parameter("model.norm.weight").fill_(7.0)
    copied.get_parameter("model.embed_tokens.weight").data = torch.zeros(3)
    assert not (base.get_parameter("model.norm.weight") == 7).all()
    assert base.get_parameter("model.embed_tokens.weight").dim() == 2


def test_each_run_sees_its_own_messages_and_the_system_text(conversation):
    conversation.set_system("Be brief.")
    conversation.say("walk north")
    conversation.use(["lora", "base"])
    conversation.say("walk south")
    said = conversation.messages
    assert [one["content"] for one in said["lora"]] == [
        "walk north",
        "going north",
        "walk south",
        said["lora"][3]["content"],
    ]
    assert [one["content"] for one in said["base"]][0] == "walk south" and len(said["base"]) == 2
    run = conversation.runs["lora"]
    text = run.encode(conversation._request(run, "walk west")).text
    assert text == run.tokenizer.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, *said["lora"], {"role": "user", "content": "walk west"}],
        tokenize=False,
        add_generation_prompt=True,
    )


def test_pieces_joined_are_the_answer(conversation):
    conversation.change(["temperature=1.5", "max_new_tokens=40"])
    conversation.use(["full", "base"])
    pieces: dict[str, list[str]] = {"full": [], "base": []}
    replies = conversation.say("walk east", lambda name, piece: pieces[name].append(piece))
    assert {reply.run: reply.text for reply in replies} == {name: "".join(one) for name, one in pieces.items()}
    assert all(len(one) > 3 for one in pieces.values())
    again = conversation.say("walk east")
    assert [one.text for one in again] != [one.text for one in replies]  # each turn has a seed of its own


class Letters:
    """A tokenizer whose tokens are characters, but for the two halves of one, and an end."""

    clean_up_tokenization_spaces = False

    def decode(self, ids, skip_special_tokens):
        return "".join(map(chr, ids)).replace("12", "é").replace("1", "\ufffd")


def streamed(text, stops, answer):
    pieces: list[str] = []
    streamer = PieceStreamer(Letters(), {0}, stops, pieces.append)
    streamer.put(torch.tensor([[65, 66]]))
    for letter in text:
        streamer.put(torch.tensor([ord(letter)]))
    streamer.end()
    streamer.finish(answer)
    return pieces


def test_halves_of_characters_and_beginnings_of_stop_texts_are_held_back():
    assert streamed(" a12b", (), "aéb") == ["a", "é", "b"]
    assert streamed("ab<<x<<END>>c", ("<<END>>",), "ab<<x") == ["a", "b", "<<x"]
    assert streamed("a b \n", (), "a b") == ["a", " b"]
    assert streamed("ab\0c", (), "ab") == ["a", "b"]


def test_settings_are_checked_and_a_wrong_one_changes_nothing(conversation):
    for wrong, message in (
        (["temperature=-1"], "temperature: "),
        (["top_p=0.5", "heat=1"], "'heat=1': write NAME=VALUE"),
        (["seed=x"], "seed: needs a whole number"),
    ):
        with pytest.raises(UsageError, match=message):
            conversation.change(wrong)
    assert conversation.settings.temperature == 0 and conversation.settings.top_p == 1
    with pytest.raises(UsageError, match="no run is called 'lorra'.*lora"):
        conversation.use(["lorra"])
    assert conversation.active == ["lora"]


def test_runs_of_one_folder_name_are_called_by_their_paths(tmp_path):
    assert name_runs([tmp_path / "a" / "run", tmp_path / "b" / "run"]) == ["a/run", "b/run"]
    assert name_runs([tmp_path / "base"]) == [f"{tmp_path.name}/base"]
    with pytest.raises(UsageError, match="named twice"):
        name_runs([tmp_path / "run", tmp_path / "x" / ".." / "run"])


def test_a_pipe_gets_answers_alone_on_standard_output(folders, monkeypatch, capsys, tmp_path):
    before = ["walk north", "", "/set max_new_tokens=8", "/nonsense", "/system Be brief.", "/use lora base"]
    after = [f"/save {tmp_path / 'chat.jsonl'}", "/reset", "/runs", "/help", "/quit", "walk west"]
    lines = [*before, "walk south", *after]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    assert run_command(["chat", str(folders["lora"])]) == 2
    out, errors = capsys.readouterr()
    first, second, third = out.splitlines()
    assert first == "going north" and second.startswith("[lora] ") and third.startswith("[base] ")
    assert "/nonsense: no such command" in errors and "\x1b" not in out + errors
    rows = [json.loads(line) for line in (tmp_path / "chat.jsonl").read_text().splitlines()]
    assert [row["run"] for row in rows] == ["lora", "base"]
    assert [one["role"] for one in rows[0]["messages"]] == ["system", "user", "assistant", "user", "assistant"]


def test_answers_as_json_lines(folders, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(f"walk {word}" for word in WORDS)))
    assert run_command(["chat", str(folders["lora"]), "--json", "evaluation.generation.max_new_tokens=8"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["prompt"] for row in rows] == [f"walk {word}" for word in WORDS]
    assert rows[0] == {"run": "lora", "prompt": "walk north", "output": "going north", "ended": True}


def test_a_run_on_texts_has_no_system_message_and_no_history(tmp_path):
    train(shallow_recipe("lora", tmp_path / "run"), display=NoDisplay())
    conversation = open_conversation([tmp_path / "run"])
    with pytest.raises(UsageError, match="continue texts"):
        conversation.set_system("Be brief.")
    first = conversation.say("def add(a, b):")
    assert first[0].text == conversation.say("def add(a, b):")[0].text == generate(tmp_path / "run", "def add(a, b):")


def test_an_answer_whose_reader_has_ended_is_not_reported_as_a_fault(capsys):
    def end():
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        run(end, as_json=False, debug=False)
    assert capsys.readouterr().err == ""
