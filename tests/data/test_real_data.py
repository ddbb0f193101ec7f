"""GSM8K and the E2E challenge, where their files are: set PEFTLAB_DATA to their folder."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from peftlab.data.dataset import load_data
from peftlab.data.sources import read_source
from peftlab.tasks import TASKS

FOLDER = Path(os.environ.get("PEFTLAB_DATA", Path(__file__).parents[3] / "shared" / "data"))
pytestmark = pytest.mark.skipif(
    not (FOLDER / "e2e_dev.csv").exists(), reason=f"no e2e_dev.csv in {FOLDER}; set PEFTLAB_DATA"
)


def test_published_row_counts_are_read():
    names = ("gsm8k_train.jsonl", "gsm8k_test.jsonl", "e2e_dev.csv", "e2e_test.csv")
    assert [read_source(str(FOLDER / name), "train").count for name in names] == [7473, 1319, 4672, 4693]


def tokenizer_alone_seconds(bpe) -> float:
    """Processor seconds that the tokenizer takes for the texts of three files, one after another."""
    texts = [
        " ".join(map(str, row.cells.values()))
        for name in ("e2e_dev.csv", "e2e_test.csv", "gsm8k_test.jsonl")
        for _, row in read_source(str(FOLDER / name), "train").rows()
    ]
    start = time.process_time()
    for text in texts:
        bpe(text)
    return time.process_time() - start


def test_both_load_in_few_times_what_the_tokenizer_alone_takes_and_group_their_references(section, bpe):
    start = time.process_time()  # not the wall clock: a busy machine is not a slow reader
    e2e = load_data(
        section(
            train=str(FOLDER / "e2e_dev.csv"),
            evaluation=str(FOLDER / "e2e_test.csv"),
            template="Facts: {mr}\nText: ",
            columns={"completion": "ref"},
        ),
        bpe,
        TASKS["causal-lm"],
        0,
    )
    columns = {"prompt": "question", "completion": "answer"}
    data = section(train=str(FOLDER / "gsm8k_test.jsonl"), evaluation=0.1, columns=columns, max_length=1024)
    gsm8k = load_data(data, bpe, TASKS["causal-lm"], 0)
    taken = time.process_time() - start
    assert taken < 6 * tokenizer_alone_seconds(bpe)  # measured: 2.6
    assert (len(e2e.train), len(e2e.evaluation), len(e2e.prompts)) == (4672, 4693, 630)
    assert sum(len(prompt.references) for prompt in e2e.prompts) == 4693
    assert e2e.report["leaks"]["train/evaluation"]["rows"] == 0
    assert (len(gsm8k.train), len(gsm8k.evaluation), len(gsm8k.prompts)) == (1187, 132, 132)
    assert gsm8k.report["train"]["dropped"] == 0
