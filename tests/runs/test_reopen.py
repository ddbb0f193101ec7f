"""A finished run is evaluated and asked from itself alone; one that resumes on other tokens is another experiment."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import transformers

from peftlab.errors import DataError, StorageError
from peftlab.memory.fit import with_settings
from peftlab.recipe.schema import Evaluation, Recipe
from peftlab.runs.display import NoDisplay
from peftlab.runs.generation import generate
from peftlab.runs.merge import merge
from peftlab.runs.run import train
from peftlab.runs.use import evaluate
from tests.data.conftest import CHAT_TEMPLATE
from tests.runs.recipes import shallow_model

PETS = [
    {"text": f"the {pet} {what} {i}", "label": pet}
    for i in range(6)
    for pet, what in (("cat", "purrs"), ("dog", "barks"))
]
WORDS = [{"words": ["see", name, "run"], "tags": ["O", "B-pet", "O"]} for name in ("rex", "tom", "kit", "bob") * 2]
SUMS = [{"prompt": f"{i} and one make", "completion": f" {i + 1}"} for i in range(12)]
CHATS = [
    {"messages": [{"role": "user", "content": f"say {word}"}, {"role": "assistant", "content": word}]}
    for word in ("red", "blue", "green", "black", "white", "brown")
]


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def chat_model(folder: Path, template: str = CHAT_TEMPLATE) -> Path:
    """Return a copy of the shallow model whose tokenizer has a chat template."""
    if not folder.exists():
        shutil.copytree(shallow_model(), folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def recipe_of(folder: Path, layout: str, task: str = "causal-lm", model: Path | None = None, **data) -> Recipe:
    metrics = {"causal-lm": ["loss", "exact_match"], "sequence-classification": ["loss", "accuracy"]}
    return Recipe.model_validate(
        {
            "model": {"name": str(model or shallow_model()), "task": task},
            "method": {"type": "lora", "rank": 4},
            "data": {"train": str(folder / "train.jsonl"), "format": layout, "max_length": 64, **data},
            "training": {"steps": 4, "batch_size": 4, "learning_rate": 5e-3},
            "evaluation": {
                "metrics": metrics.get(task, ["loss", "span_f1"]),
                "generation": {"max_new_tokens": 4, "examples": 0, "rows": 2},
            },
            "run": {"output": str(folder / "run"), "device": "cpu", "plan": "off", "save_every": 2},
        }
    )


@pytest.mark.parametrize(
    ("layout", "task", "rows", "renamed"),
    [
        ("classification", "sequence-classification", PETS, {"dog": "Dog"}),
        ("tokens", "token-classification", WORDS, {"B-pet": "A-pet"}),
    ],
)
def test_classes_are_those_of_the_weights_whatever_the_training_file_says_now(tmp_path, layout, task, rows, renamed):
    train_file = tmp_path / "train.jsonl"
    held = write(tmp_path / "held.jsonl", rows)
    write(train_file, rows)
    recipe = recipe_of(tmp_path, layout, task, evaluation=held)
    expected = train(recipe, display=NoDisplay()).metrics["after"]
    text = json.dumps(rows)
    for old, new in renamed.items():
        text = text.replace(json.dumps(old), json.dumps(new))
    other = write(train_file, json.loads(text))
    assert evaluate(tmp_path / "run") == expected
    with pytest.raises(
        DataError, match=f"label '{next(iter(renamed.values()))}' never occurs in training; known labels"
    ):
        evaluate(tmp_path / "run", [f"data.evaluation={other}"])
    train_file.unlink()
    assert evaluate(tmp_path / "run") == expected


def test_rows_held_out_of_the_training_file_are_the_runs_own(tmp_path):
    train_file = tmp_path / "train.jsonl"
    write(train_file, SUMS)
    result = train(recipe_of(tmp_path, "completion", evaluation=0.25, test=2), display=NoDisplay())
    expected = result.metrics["after"] | {f"test_{name}": value for name, value in result.metrics["test_after"].items()}
    write(train_file, sorted(SUMS, key=json.dumps, reverse=True))
    assert evaluate(tmp_path / "run") == expected
    train_file.unlink()
    assert evaluate(tmp_path / "run") == expected
    other = write(tmp_path / "other.jsonl", SUMS[:3])
    assert evaluate(tmp_path / "run", [f"data.evaluation={other}"])["test_loss"] == expected["test_loss"]


def test_rows_held_out_by_an_earlier_version_are_refused_after_their_file_changed(tmp_path):
    train_file = tmp_path / "train.jsonl"
    write(train_file, SUMS)
    expected = train(recipe_of(tmp_path, "completion", evaluation=0.25), display=NoDisplay()).metrics["after"]
    shutil.rmtree(tmp_path / "run" / "held_out")
    (tmp_path / "run" / "MANIFEST.json").unlink()  # no earlier version wrote one
    assert evaluate(tmp_path / "run") == expected
    write(train_file, [*SUMS[1:], SUMS[0]])
    with pytest.raises(
        DataError, match=r"data\.evaluation: its rows were held out of .*, which has changed since the run"
    ):
        evaluate(tmp_path / "run")


def test_a_chats_template_is_the_one_that_was_trained_with(tmp_path):
    model = chat_model(tmp_path / "model")
    held = write(tmp_path / "held.jsonl", CHATS)
    write(tmp_path / "train.jsonl", CHATS)
    expected = train(recipe_of(tmp_path, "chat", model=model, evaluation=held), display=NoDisplay()).metrics["after"]
    asked = generate(tmp_path / "run", "say red")
    (tmp_path / "train.jsonl").unlink()

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "run" / "weights")
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert evaluate(tmp_path / "run") == expected
    assert generate(tmp_path / "run", "say red") == asked


@pytest.fixture
def stopped(tmp_path) -> Recipe:
    """A run on chats that has stopped after its second step."""
    write(tmp_path / "train.jsonl", CHATS)
    recipe = recipe_of(tmp_path, "chat", model=chat_model(tmp_path / "model"))
    halted = recipe.model_copy(update={"run": recipe.run.model_copy(update={"stop_after": 2})})
    with pytest.raises(Exception, match="stop"):
        train(halted, display=NoDisplay())
    return recipe


def test_another_template_is_another_experiment_and_the_same_one_resumes_exactly(tmp_path, stopped):
    chat_model(tmp_path / "model", CHAT_TEMPLATE.replace("|>{{", "|> {{"))
    with pytest.raises(StorageError, match="belongs to another run: chat template: .* tokens of data.train: "):
        train(stopped, resume=True, display=NoDisplay())
    chat_model(tmp_path / "model")
    (report,) = train(stopped, resume=True, display=NoDisplay()).resumes
    assert report.exact


def test_rows_in_another_file_with_the_same_tokens_are_the_same_experiment(tmp_path, stopped):
    write(tmp_path / "train.jsonl", [{**row, "source": "elsewhere"} for row in CHATS])
    assert train(stopped, resume=True, display=NoDisplay()).resumes[0].exact


def test_a_template_that_writes_another_date_is_another_experiment(tmp_path, monkeypatch):
    write(tmp_path / "train.jsonl", CHATS)
    dated = "{{ strftime_now('%d') }}" + CHAT_TEMPLATE
    model = chat_model(tmp_path / "model", dated)
    recipe = recipe_of(tmp_path, "chat", model=model)
    # Kept tokens have the day in their key; this test's other day is not the calendar's.
    recipe = with_settings(recipe, {"training.speed": {"token_cache": "off"}})
    halted = recipe.model_copy(update={"run": recipe.run.model_copy(update={"stop_after": 2})})
    with pytest.raises(Exception, match="stop"):
        train(halted, display=NoDisplay())
    from peftlab.data.chat import ChatTemplate

    write_today = ChatTemplate.write
    monkeypatch.setattr(ChatTemplate, "write", lambda *args, **named: "tomorrow" + write_today(*args, **named))
    with pytest.raises(
        StorageError, match="template's output: 'the same template wrote other text' -> .as one does that"
    ):
        train(recipe, resume=True, display=NoDisplay())


def test_a_run_is_merged_without_its_training_file(tmp_path):
    write(tmp_path / "train.jsonl", SUMS)
    recipe = recipe_of(tmp_path, "completion")
    train(recipe.model_copy(update={"evaluation": Evaluation()}), display=NoDisplay())
    (tmp_path / "train.jsonl").unlink()
    assert merge(tmp_path / "run", tmp_path / "merged").part == "train"
