"""Tasks of lm-evaluation-harness on a run: base, trained and merged weights, against the loss of the same rows."""

from __future__ import annotations

import importlib.util
import json
import math

import pytest
from transformers import AutoTokenizer

from peftlab.cli.app import run as run_command
from peftlab.errors import MissingRequirementError, UsageError
from peftlab.evaluation.harness import refuse_missing_harness
from peftlab.recipe.schema import Recipe
from peftlab.runs.benchmarks import evaluate_tasks
from peftlab.runs.display import NoDisplay
from peftlab.runs.run import train
from tests.runs.chats import TEMPLATE, WORDS, chat_sections
from tests.runs.recipes import shallow_recipe

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="needs lm_eval: pip install 'peftlab[harness]'"
)
quiet = pytest.mark.filterwarnings("ignore")  # of the harness and what it imports
TEXTS = ["Return the sum of two numbers.", "Push an item onto the heap.", "Close the file."]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Three tasks whose data are local files: running text, a choice, and generated text."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = {
        "texts": [{"text": text} for text in TEXTS],
        "choices": [{"query": f"walk {word}", "choices": [f"going {one}" for one in WORDS], "gold": place}
                    for place, word in enumerate(WORDS)],
        "answers": [{"query": f"walk {word}", "answer": f"going {word}"} for word in WORDS],
    }  # fmt: skip
    settings = {
        "texts": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "text",
                  "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}]},
        "choices": {"output_type": "multiple_choice", "doc_to_text": "query", "doc_to_choice": "choices",
                    "doc_to_target": "gold", "metric_list": [{"metric": "acc"}]},
        "answers": {"output_type": "generate_until", "doc_to_text": "query", "doc_to_target": "answer",
                    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 12},
                    "metric_list": [{"metric": "exact_match"}]},
    }  # fmt: skip
    for name, own in settings.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows[name])))
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}}}
        (folder / f"{name}.yaml").write_text(json.dumps({"task": f"own_{name}", "test_split": "test", **data, **own}))
    return {name: str(folder / f"{name}.yaml") for name in settings}


@pytest.fixture(scope="module")
def texts_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    train(shallow_recipe("lora", folder), display=NoDisplay())
    return folder


@needs_harness
@quiet
def test_merged_weights_measure_what_the_trained_ones_do_and_the_base_does_not(texts_run, tasks):
    found = {kind: evaluate_tasks(texts_run, [tasks["texts"]], weights=kind)["own_texts"]
             for kind in ("trained", "merged", "base")}  # fmt: skip
    assert found["merged"] == pytest.approx(found["trained"], rel=1e-4)
    assert abs(found["base"]["bits_per_byte"] / found["trained"]["bits_per_byte"] - 1) > 0.01
    words, size = sum(len(text.split()) for text in TEXTS), sum(len(text.encode()) for text in TEXTS)
    bits = math.log2(found["base"]["word_perplexity"]) * words / size
    assert found["base"]["bits_per_byte"] == pytest.approx(bits)


@needs_harness
@quiet
def test_chats_learned_by_heart_are_answered_as_chats(tmp_path, tasks):
    recipe = Recipe.model_validate(chat_sections(tmp_path))
    train(recipe, display=NoDisplay())
    found = evaluate_tasks(tmp_path / "run", [tasks["answers"], tasks["choices"]])
    assert found["own_answers"]["exact_match"] == 1.0 and found["own_choices"]["acc"] == 1.0
    base = evaluate_tasks(tmp_path / "run", [tasks["answers"]], weights="base", limit=2)
    assert base["own_answers"]["exact_match"] == 0.0


@needs_harness
@quiet
def test_a_prompt_has_the_date_of_the_run(tmp_path, tasks, monkeypatch):
    from lm_eval.models.huggingface import HFLM

    sections = chat_sections(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    tokenizer.chat_template = "{{ strftime_now('%d.%m.%Y') }}\n" + TEMPLATE
    tokenizer.save_pretrained(tmp_path / "base")
    sections["data"]["date"], sections["training"]["steps"] = "1999-12-31", 1
    train(Recipe.model_validate(sections), display=NoDisplay())
    prompts = []
    monkeypatch.setattr(
        HFLM, "generate_until", lambda _, asked, **__: [prompts.append(one.args[0]) or "" for one in asked]
    )
    evaluate_tasks(tmp_path / "run", [tasks["answers"]])
    assert prompts == [f"31.12.1999\n[|user|]\nwalk {word}<|turn|>\n[|assistant|]\n" for word in WORDS]


@needs_harness
@quiet
def test_an_unknown_task_is_one_line(texts_run):
    with pytest.raises(UsageError, match="the harness has no task 'arc_esay'; did you mean 'arc_easy'"):
        evaluate_tasks(texts_run, ["arc_esay"])


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm_eval is installed")
def test_a_missing_harness_is_one_line():
    with pytest.raises(MissingRequirementError, match=r"pip install 'peftlab\[harness\]'"):
        refuse_missing_harness()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", ","], "--tasks names no task"),
        (["--limit", "3"], "--limit, --shots and --weights belong to --tasks"),
        (["--tasks", "a", "--output", "x"], "--output is for the run's own rows"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(tmp_path, capsys, arguments, message):
    assert run_command(["evaluate", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err
