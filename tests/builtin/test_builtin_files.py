"""Claims about the shipped model and data: small, well-formed, and no module on both sides of a split."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

REPOSITORY = Path(__file__).resolve().parents[2]
BUILTIN = REPOSITORY / "peftlab" / "builtin"
ROW_KEYS = {"docstrings": ["module", "name", "prompt", "completion"], "topics": ["text", "label", "module"]}
LIMIT_BYTES = {
    "tiny": 8_000_000,
    "docstrings": 1_500_000,
    "topics": 600_000,
    "identifiers": 800_000,
    "prose": 200_000,
}
DATA_SETS = sorted(ROW_KEYS)


def read_rows(name: str, split: str) -> list[dict[str, str]]:
    lines = (BUILTIN / name / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def top_level_modules(rows: list[dict[str, str]]) -> set[str]:
    return {row["module"].partition(".")[0] for row in rows}


@pytest.fixture(scope="module")
def corpus() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stdlib_corpus", REPOSITORY / "scripts" / "stdlib_corpus.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(BUILTIN / "tiny")


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(BUILTIN / "tiny", dtype=torch.float32).eval()


@pytest.mark.parametrize("name", sorted(LIMIT_BYTES))
def test_folder_stays_under_its_size_limit(name):
    assert 0 < sum(path.stat().st_size for path in (BUILTIN / name).iterdir()) <= LIMIT_BYTES[name]


@pytest.mark.parametrize("name", DATA_SETS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_rows_are_well_formed(name, split):
    for row in read_rows(name, split):
        assert list(row) == ROW_KEYS[name]
        assert all(isinstance(value, str) and value.strip() for value in row.values())


@pytest.mark.parametrize("name", DATA_SETS)
def test_train_and_test_share_no_module(name):
    assert not top_level_modules(read_rows(name, "train")) & top_level_modules(read_rows(name, "test"))


@pytest.mark.parametrize("name", DATA_SETS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_readme_names_the_rows_and_the_digest(name, split):
    path = BUILTIN / name / f"{split}.jsonl"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    line = next(line for line in (BUILTIN / name / "README.md").read_text().splitlines() if f"`{path.name}`" in line)
    assert f"| {len(read_rows(name, split)):,} |" in line and digest in line


def test_docstring_prompts_end_in_the_marker_and_completions_are_one_new_sentence(corpus):
    rows = read_rows("docstrings", "train") + read_rows("docstrings", "test")
    for row in rows:
        assert row["prompt"].endswith(f"\n{corpus.TASK_MARKER}")
        assert re.fullmatch(r" [A-Z][ -~]*\.", row["completion"])
        assert row["completion"].strip() not in row["prompt"]
    pairs = Counter((row["name"].rpartition(".")[2], row["completion"]) for row in rows)
    assert max(pairs.values()) == 1


def test_prose_comes_from_modules_that_nothing_trains_on(corpus):
    rows = read_rows("prose", "test")
    assert len(rows) >= 100 and all(list(row) == ["text", "module"] and len(row["text"]) >= 400 for row in rows)
    assert top_level_modules(rows) <= corpus.task_modules("test")


def test_there_are_enough_docstrings_to_train_and_to_measure():
    assert len(read_rows("docstrings", "train")) >= 2000
    assert len(read_rows("docstrings", "test")) >= 500


def test_topics_are_the_same_in_both_splits_and_balanced(corpus):
    for split in ("train", "test"):
        counts = Counter(row["label"] for row in read_rows("topics", split))
        assert set(counts) == set(corpus.TOPICS)
        assert max(counts.values()) <= 1.2 * min(counts.values())


def test_no_topic_text_is_in_both_splits():
    train, test = ({row["text"].lower() for row in read_rows("topics", split)} for split in ("train", "test"))
    assert not train & test


@pytest.mark.parametrize("split", ["train", "test"])
def test_rows_come_only_from_the_modules_declared_for_their_split(corpus, split):
    rows = read_rows("docstrings", split) + read_rows("topics", split)
    assert top_level_modules(rows) <= corpus.task_modules(split)


def test_pretraining_files_hold_no_module_of_the_data_and_none_of_its_tests(corpus):
    rows = [row for name in DATA_SETS for split in ("train", "test") for row in read_rows(name, split)]
    modules = top_level_modules(rows)
    files = corpus.list_corpus_files()
    assert files, "the running Python has no library sources to read"
    assert not modules & {corpus.top_level_module(path) for path in files}
    test_stems = {path.stem for path in files if corpus.is_test_file(path)}
    assert not test_stems & {f"test_{module.lstrip('_')}" for module in modules}


@pytest.mark.parametrize(
    "path",
    [
        "email/message.py",
        "test/test_email/test_message.py",
        "test/test_zipfile64.py",
        "test/_test_multiprocessing.py",
        "tkinter/test/support.py",
        "test/test_minidom.py",
    ],
)
def test_files_of_task_modules_are_kept_out_of_pretraining(corpus, path):
    assert not corpus.is_allowed(Path(path))


@pytest.mark.parametrize("path", ["argparse.py", "test/test_argparse.py", "logging/config.py", "pydoc_data/topics.py"])
def test_files_of_other_modules_are_allowed_in_pretraining(corpus, path):
    assert corpus.is_allowed(Path(path))


def test_end_of_text_is_not_padding(tokenizer):
    assert tokenizer.eos_token_id is not None and tokenizer.pad_token_id is not None
    assert tokenizer.eos_token_id != tokenizer.pad_token_id


@pytest.mark.parametrize("text", ["def f():\n\treturn '≠ é'  # two  spaces\n", " Return it.", "\r\n\n    x\n"])
def test_tokenizer_gives_back_every_text_unchanged(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_every_docstring_row_fits_in_224_tokens_with_its_end(tokenizer):
    texts = [row["prompt"] + row["completion"] for split in ("train", "test") for row in read_rows("docstrings", split)]
    assert max(len(ids) for ids in tokenizer(texts)["input_ids"]) + 1 <= 224


def test_every_linear_layer_of_the_blocks_has_a_bias_that_was_trained(model):
    linears = [module for module in model.model.modules() if isinstance(module, torch.nn.Linear)]
    assert len(linears) == 7 * model.config.num_hidden_layers
    assert all(linear.bias is not None and linear.bias.abs().max() > 0 for linear in linears)


def test_every_linear_layer_has_widths_that_four_bit_blocks_divide(model):
    for module in model.model.modules():
        if isinstance(module, torch.nn.Linear):
            assert module.in_features % 64 == 0 and module.out_features % 64 == 0


def test_model_predicts_held_out_docstrings_better_than_a_uniform_guess(model, tokenizer):
    losses = []
    for row in read_rows("docstrings", "test")[::40]:
        prompt = tokenizer(row["prompt"])["input_ids"]
        completion = tokenizer(row["completion"])["input_ids"]
        ids = torch.tensor([prompt + completion])
        labels = torch.tensor([[-100] * len(prompt) + completion])
        with torch.no_grad():
            losses.append(model(input_ids=ids, labels=labels).loss.item())
    # A uniform guess over the vocabulary costs ln(4096) = 8.3 nats a token.
    assert sum(losses) / len(losses) < 6.5
