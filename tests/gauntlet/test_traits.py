"""The gauntlet on some two dozen traits of model families, a type and a method for each, in a minute or so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gauntlet.cases import Case
from tests.gauntlet.small import build
from tests.gauntlet.stages import run_case
from tests.sampling import sampled

CLASSIFY, TAG, ANSWER = "sequence-classification", "token-classification", "sequence-to-sequence"
WORKS = {
    "a window in every layer": ("mistral", "causal-lm", "lora"),
    "layers with and without a window": ("gemma3_text", "causal-lm", "prefix"),
    "sinks and fused experts with biases": ("gpt_oss", "causal-lm", "qlora-nf4"),
    "one key for all queries": ("falcon", "causal-lm", "prefix"),
    "fewer keys than queries": ("llama", "causal-lm", "prefix"),
    "a recurrent state, weights read without a call": ("mamba", "causal-lm", "qlora-nf4"),
    "a state of no transformers cache": ("rwkv", "causal-lm", "lora"),
    "recurrent and attention layers": ("qwen3_next", "causal-lm", "lora"),
    "fused experts, a gate of one output": ("qwen2_moe", "causal-lm", "lora"),
    "a router of the model's own class": ("llama4_text", "causal-lm", "qlora-nf4"),
    "dense first layers before experts": ("glm4_moe", "causal-lm", "lora"),
    "a tied head": ("gemma", "causal-lm", "full"),
    "an untied head, biases everywhere": ("phi", "causal-lm", "bitfit"),
    "parallel attention and feed-forward": ("gpt_neox", "causal-lm", "adapters"),
    "Conv1D": ("gpt2", "causal-lm", "qlora-int8"),
    "learned positions": ("opt", "causal-lm", "prompt"),
    "ALiBi": ("bloom", "causal-lm", "lora"),
    "distances that count padding, no cache by default": ("mpt", "causal-lm", "prefix"),
    "a decoder of an encoder-decoder": ("bart", "causal-lm", "lora"),
    "a vision tower": ("gemma3", "causal-lm", "lora"),
    "shared layers": ("albert", CLASSIFY, "lora"),
    "latent attention, inputs of four dimensions": ("axk1", "causal-lm", "qlora-int8"),
    "norms that magnify what int8 rounds": ("gemma4_text", "causal-lm", "qlora-int8"),
    "an indexer that rotates queries alone": ("qwen4_exp_text", "causal-lm", "lora"),
    "a table of positions that is a dense layer": ("layoutlmv3", TAG, "qlora-nf4"),
    "an encoder with keys from outside": ("bert", CLASSIFY, "prefix"),
    "a configuration without an end token": ("roc_bert", CLASSIFY, "prompt"),
    "a weight that training clips": ("gemma3n_text", "causal-lm", "qlora-nf4"),
    "an encoder without a cache": ("modernbert", CLASSIFY, "prompt"),
    "relative positions": ("deberta-v2", TAG, "lora"),
    "an unused head": ("esm", CLASSIFY, "full"),
    "buffers that training moves": ("ibert", CLASSIFY, "full"),
    "keys compressed over several tokens": ("deepseek_v4", "causal-lm", "lora"),
    "answers that padding changes": ("fsmt", ANSWER, "lora"),
    "an answer that only the loss shifts, routed states": ("nllb-moe", ANSWER, "full"),
    "a start that the decoder's configuration names": ("t5gemma", ANSWER, "lora"),
}
# A whole run of each of these takes longest, or is like another's.
SLOW = [
    "one key for all queries",
    "fewer keys than queries",
    "a state of no transformers cache",
    "a router of the model's own class",
    "dense first layers before experts",
    "a decoder of an encoder-decoder",
    "an unused head",
    "keys compressed over several tokens",
    "an answer that only the loss shifts, routed states",
    "a start that the decoder's configuration names",
    "an indexer that rotates queries alone",
    "norms that magnify what int8 rounds",
    "a weight that training clips",
    "a window in every layer",
    "recurrent and attention layers",
    "fused experts, a gate of one output",
    "a vision tower",
    "shared layers",
    "latent attention, inputs of four dimensions",
    "a table of positions that is a dense layer",
    "an encoder with keys from outside",
    "a configuration without an end token",
]
REFUSED = {
    "no cache": ("modernbert", CLASSIFY, "prefix", "kind: prompt"),
    "relative positions": ("deberta-v2", CLASSIFY, "prefix", "kind: prompt"),
    "a recurrent state": ("qwen3_next", "causal-lm", "prefix", "kind: prompt"),
    "no biases": ("llama", "causal-lm", "bitfit", "add_missing"),
    "an encoder as a decoder": ("bert", "causal-lm", "lora", "use another task or a decoder"),
    "rows that change one another": ("fnet", CLASSIFY, "lora", "batch_size=1"),
    "a decoder that reads both sides": ("cpmant", "causal-lm", "lora", "use another task or a decoder"),
    "padding that moves an answer": ("prophetnet", ANSWER, "lora", "batch_size=1"),
    "padding that moves the classified token": ("t5gemma", CLASSIFY, "lora", "batch_size=1"),
    "keys of a latent, as a classifier": ("axk1", CLASSIFY, "prefix", "kind: prompt"),
    "keys of a latent behind a router": ("longcat_flash", "causal-lm", "prefix", "kind: prompt"),
    "biases that only choose experts": ("ernie4_5_moe", "causal-lm", "bitfit", "add_missing"),
    "token ids alone": ("fsmt", ANSWER, "prompt", "use lora"),
    "experts chosen by token ids": ("deepseek_v4", "causal-lm", "prompt", "use lora"),
    "inputs of each layer by tokens": ("gemma4_text", "causal-lm", "prompt", "use lora"),
    "padding that a kernel reads": ("yoso", TAG, "prompt", "batch_size=1"),
    "speech": ("qwen2_audio", ANSWER, "lora", "use task: causal-lm"),
    "boxes": ("bros", TAG, "lora", "reads the boxes"),
}
# Each method that is refused, and what a batch, a task and an input can refuse.
REFUSED_SAMPLE = ["no cache", "no biases", "an encoder as a decoder", "padding that moves an answer", "token ids alone"]
REFUSED_SAMPLE += ["a decoder that reads both sides", "boxes"]


def outcome_of(model_type: str, task: str, form: str, folder: Path, tmp_path: Path):
    base = build(model_type, task, folder)
    assert isinstance(base, Path), base
    return run_case(Case(model_type, task, form), base, tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("trait", sampled(list(WORKS), [one for one in WORKS if one not in SLOW]))
def test_a_family_works_from_check_to_merge(trait, tmp_path_factory, tmp_path):
    outcome = outcome_of(*WORKS[trait], tmp_path_factory.mktemp("base"), tmp_path)
    assert outcome.outcome == "works", f"{outcome.stage}: {outcome.reason}"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("trait", sampled(list(REFUSED), REFUSED_SAMPLE))
def test_a_family_that_cannot_work_is_refused_in_a_line_with_a_remedy(trait, tmp_path_factory, tmp_path):
    *case, remedy = REFUSED[trait]
    outcome = outcome_of(*case, tmp_path_factory.mktemp("base"), tmp_path)
    assert outcome.outcome == "refused", f"{outcome.stage}: {outcome.reason}"
    assert remedy in outcome.reason and "\n" not in outcome.reason
