"""Runs with new tokens: planned, stopped and resumed to the same bytes, and used in a fresh load from the run alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from peftlab.errors import DataError, StoppedError
from peftlab.recipe.schema import Recipe
from peftlab.runs.display import NoDisplay
from peftlab.runs.generation import generate
from peftlab.runs.merge import MergeOptions, merge
from peftlab.runs.params import count
from peftlab.runs.plan import plan
from peftlab.runs.run import train
from peftlab.runs.use import evaluate
from peftlab.runs.verify import differing, load_final
from tests.runs.recipes import METHODS, shallow_model
from tests.sampling import sampled

TOKENS = ["<|tool|>", "<|result|>"]
ROWS = [{"prompt": f"<|tool|> add {i}", "completion": f" <|result|> {i + 1}"} for i in range(8)]


def recipe(folder: Path, output: str, method: str, tokens=TOKENS, plan="off", **run) -> Recipe:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return Recipe.model_validate(
        {
            "model": {"name": str(shallow_model()), "add_tokens": tokens},
            "method": METHODS[method],
            "data": {"train": str(path), "evaluation": str(path), "max_length": 32},
            "training": {"steps": 4, "batch_size": 4, "learning_rate": 1e-2},
            "evaluation": {"generation": {"max_new_tokens": 4, "examples": 1}},
            "run": {"output": str(folder / output), "device": "cpu", "save_every": 2, "plan": plan, **run},
        }
    )


def start(one: Recipe, resume: bool = False):
    return train(one, resume=resume, display=NoDisplay())


@pytest.mark.parametrize(
    "method",
    [pytest.param("lora", marks=pytest.mark.slow), "qlora", "adapters", pytest.param("bitfit", marks=pytest.mark.slow)],
)
def test_a_run_with_new_tokens_resumes_exactly_and_is_evaluated_from_itself(tmp_path, method):
    straight = start(recipe(tmp_path, "straight", method))
    with pytest.raises(StoppedError):
        start(recipe(tmp_path, "resumed", method, stop_after=2))
    resumed = start(recipe(tmp_path, "resumed", method), resume=True)
    same = differing(load_final(tmp_path / "straight"), load_final(tmp_path / "resumed"))
    assert resumed.resumes[0].exact and all(same.values())
    assert any("trainable_tokens_delta" in name for name in same)
    assert evaluate(tmp_path / "straight") == straight.metrics["after"]
    assert isinstance(generate(tmp_path / "straight", "<|tool|> add 3"), str)


def test_new_rows_are_in_the_count_and_in_the_memory_plan(tmp_path):
    plain, new = recipe(tmp_path, "run", "lora", tokens=[]), recipe(tmp_path, "run", "lora", plan="report")
    rows = count(new).trainable - count(plain).trainable
    assert rows > 0 and rows % len(TOKENS) == 0
    predicted = [plan(one, device="cpu").categories["trainable_weights"] for one in (plain, new)]
    assert predicted[1] - predicted[0] == 4 * rows
    result = start(new)
    assert result.parameters.trainable == count(new).trainable
    measured, planned = result.memory["measured"], result.memory["predicted"]
    assert planned.peak_bytes == pytest.approx(measured.peak_bytes, rel=0.05)


def test_without_new_tokens_their_texts_are_pieces_and_nothing_is_refused(tmp_path):
    assert start(recipe(tmp_path, "run", "lora", tokens=[])).status == "finished"


def test_a_token_beyond_the_embedding_is_refused_only_where_a_row_uses_it(tmp_path):
    model = tmp_path / "model"
    shutil.copytree(shallow_model(), model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["<|unused|>", "<|tool|>"])
    tokenizer.save_pretrained(model)
    one = recipe(tmp_path, "run", "lora", tokens=[])
    one = one.model_copy(update={"model": one.model.model_copy(update={"name": str(model)})})
    with pytest.raises(DataError, match=r"data\.train: rows use the token '<\|tool\|>' with id \d+, but the"):
        start(one)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": " b"}\n')
    assert start(one).status == "finished"


@pytest.mark.parametrize("method", sampled(["lora", "qlora"], ["qlora"]))
def test_new_rows_are_in_the_merged_model(tmp_path, method):
    start(recipe(tmp_path, "run", method))
    for base in ("dequantised", "original") if method == "qlora" else ("original",):
        merge(tmp_path / "run", tmp_path / "merged", MergeOptions(base=base, overwrite=True, tolerance=9.0))
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
        stored = load_file(tmp_path / "run" / "weights" / "adapter_model.safetensors")
        (rows,) = (tensor for name, tensor in stored.items() if name.endswith("trainable_tokens_delta"))
        ids = tokenizer.convert_tokens_to_ids(TOKENS)
        assert torch.equal(model.get_input_embeddings().weight[ids], rows)
