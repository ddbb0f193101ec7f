"""A saved folder, read by a library's plain call at its defaults in a fresh process, is the model that the run scored.

Weights are compared bit by bit; losses with those that the run wrote down, row by row.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.apart import call_apart
from tests.runs.reloading import DTYPES, FAMILIES, Reload, cases, main, run

# Each method, each task, each type and each part at least once.
QUICK = [
    Reload("full", "regression"),
    Reload("last layer", "causal-lm", "bfloat16"),
    Reload("lora", "token-classification", "float16"),
    Reload("dora", "causal-lm", part="tokens"),
    Reload("pissa", "sequence-classification", part="norms"),
    Reload("qlora nf4", "multi-label-classification"),
    Reload("qlora int8", "causal-lm", part="norms"),
    Reload("adapters", "sequence-to-sequence", "bfloat16"),
    Reload("prefix", "causal-lm", "bfloat16"),
    Reload("projection", "sequence-classification"),
    Reload("prompt", "sequence-to-sequence"),
    Reload("bitfit", "sequence-classification", "float16"),
]
# Of losses: rows alone against rows in a batch; in 16 bits, a reader computes without the run's autocast.
TOLERANCES = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 4e-3}


def read_apart(folder: Path, found: list[Reload]) -> dict[str, dict]:
    for one in found:
        run(folder, one)
    (folder / "cases.json").write_text(json.dumps([asdict(one) for one in found]))
    log = folder / "log"
    assert call_apart(main, folder, folder / "cases.json", log=log) == 0, log.read_text()
    return json.loads((folder / "found.json").read_text())


def check(found: dict[str, dict], one: Reload) -> None:
    seen = found[one.name]
    assert "error" not in seen, seen["error"]
    assert not seen["unequal"], f"stored, but not in the model that a reader gets: {seen['unequal']}"
    assert seen["gap"] <= TOLERANCES[one.dtype]


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> dict[str, dict]:
    return read_apart(tmp_path_factory.mktemp("quick"), QUICK)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("one", QUICK, ids=lambda one: one.name)
def test_a_plain_reader_gets_what_was_trained(quick, one):
    check(quick, one)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("task", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_method_is_read_as_it_was_trained(task, dtype, tmp_path):
    found = cases(tasks=(task,), dtypes=(dtype,))
    seen = read_apart(tmp_path, found)
    for one in found:
        check(seen, one)
