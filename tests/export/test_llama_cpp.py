"""What llama.cpp reads in a GGUF file has the model's tokens and probabilities, and what it cannot have is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from peftlab.errors import ModelError
from peftlab.export.formats import export
from peftlab.export.gguf_families import describe, find_family
from peftlab.export.gguf_model import write_model
from peftlab.export.gguf_tokenizer import LLAMA3, QWEN2
from tests.export.peers import needs, run_peer
from tests.export.test_alone import PROBABLE
from tests.export.test_gguf import FAMILIES, SIZES, put_on_path, small, trained
from tests.runs.recipes import shallow_model

SPECIAL = ["<unk>", "<s>", "</s>"]
SAMPLES = [
    *(
        "Hello World, naïve café",
        "12345 don't DON'T we'll",
        "\n\nnew\n line\ttab \n",
        "trailing ",
        "日本語 テスト",
        "😀!",
    ),
    *("def f(a):\n    return a+1", "x" * 20, "<turn>a <turn> b", "<new>word <new> x<new>", "1,000.50 ÀÉ"),
]
# What llama.cpp computes otherwise, and no file can say.
UNCOMPUTABLE: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"hidden_act": "relu"}, "its activation is relu, and llama.cpp computes silu"),
    ("gemma2", {"hidden_activation": "gelu"}, "its activation is gelu, and llama.cpp computes gelu_pytorch_tanh"),
    ("gemma2", {"layer_types": ["full_attention", "sliding_attention"]}, "llama.cpp's first layer slides"),
    ("gemma2", {"attention_bias": True}, "llama.cpp has no biases in its attention"),
    ("qwen3", {"attention_bias": True}, "llama.cpp has no biases in its attention"),
    ("qwen2", {"head_dim": 32}, "llama.cpp divides its hidden size by its heads"),
]


@pytest.mark.parametrize(("family", "values", "message"), UNCOMPUTABLE)
def test_a_model_that_llama_cpp_computes_otherwise_is_refused(family, values, message):
    with pytest.raises(ModelError, match=f"would compute other outputs.*{message}.*use `peftlab merge`"):
        find_family(AutoConfig.for_model(family, **SIZES | FAMILIES[family] | values))


def test_its_own_converter_is_not_asked_for_a_model_that_it_cannot_have(tmp_path, monkeypatch):
    folder = small(tmp_path / "base", "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    run = trained(tmp_path, {"type": "lora", "rank": 4}, model={"name": str(folder)}, training={"steps": 1})
    put_on_path(tmp_path, "exit 0", monkeypatch)
    monkeypatch.setattr("peftlab.export.gguf.merged_beside", None)
    with pytest.raises(ModelError, match="its activation is relu"):
        export(run, tmp_path / "out", "gguf")


@pytest.mark.parametrize(("layers_before", "length"), [(0, 8), (2, 128)])
def test_the_context_is_no_longer_than_a_window_that_llama_cpp_does_not_know(layers_before, length):
    """Where no layer slides the window says nothing."""
    window = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": layers_before}
    assert describe(AutoConfig.for_model("qwen2", **SIZES | window))["context_length"] == length
    assert describe(AutoConfig.for_model("gemma2", **SIZES | {"sliding_window": 8}))["context_length"] == 128


def spaced(normalizer, pre_tokenizer=None) -> Tokenizer:
    """Return a tokenizer with byte tokens, as those that were converted from SentencePiece."""
    own = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    own.normalizer, own.decoder = normalizer, decoders.Replace("▁", " ")
    if pre_tokenizer is not None:
        own.pre_tokenizer = pre_tokenizer
    return taught(own, [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))], [])


def byte_level(*steps) -> Tokenizer:
    own = Tokenizer(models.BPE())
    own.pre_tokenizer, own.decoder = pre_tokenizers.Sequence(list(steps)), decoders.ByteLevel()
    return taught(own, SPECIAL, pre_tokenizers.ByteLevel.alphabet())


def taught(own: Tokenizer, special, alphabet) -> Tokenizer:
    text = Path(shallow_model() / "tokenizer.json").read_text()[:20_000]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    own.train_from_iterator([*(text[i : i + 50] for i in range(0, 20_000, 50)), *SAMPLES[:5] * 20], trainer)
    return own


def split(pattern: str) -> tuple[Any, Any]:
    return pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)


PREPENDED = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
LOWERED = normalizers.Sequence([normalizers.Lowercase(), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
TOKENIZERS = {
    "Llama 2": lambda: spaced(PREPENDED),
    "Gemma": lambda: spaced(normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous")),
    "GPT-2": lambda: byte_level(pre_tokenizers.ByteLevel(False)),
    "SmolLM": lambda: byte_level(pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)),
    "Qwen": lambda: byte_level(*split(QWEN2)),
    "Llama 3": lambda: byte_level(*split(LLAMA3)),
}


def tokenizer_of(own: Tokenizer) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one new token and one new special one."""
    fast = PreTrainedTokenizerFast(tokenizer_object=own, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.add_tokens([AddedToken("<new>", normalized=False)])
    fast.add_special_tokens({"additional_special_tokens": ["<turn>", "<end>", "<stop>"]})
    return fast


def write(folder: Path, tokenizer: PreTrainedTokenizerFast, *, ends=(), chats: bool = False) -> list[str]:
    """Write a small model with a tokenizer as `model.gguf` beside its folder; return the notes."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **SIZES | {"vocab_size": len(tokenizer), "num_hidden_layers": 1})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    if ends:
        GenerationConfig(eos_token_id=list(ends)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return write_model(folder, folder.parent / "model.gguf", "float32", "base", chats=chats)[1]


@pytest.mark.parametrize(
    ("own", "names"),
    [
        (lambda: spaced(LOWERED), "Lowercase, Prepend, Replace"),
        (lambda: spaced(PREPENDED, pre_tokenizers.Digits(True)), "Prepend, Replace, Digits"),
        (lambda: spaced(normalizers.Sequence([]), pre_tokenizers.Metaspace("▁", "always", True)), "Metaspace"),
        (lambda: spaced(normalizers.Sequence([])), "nothing"),
    ],
    ids=["lowered", "digits", "split", "nothing"],
)
def test_a_tokenizer_that_prepares_a_text_otherwise_is_refused(own, names, tmp_path):
    with pytest.raises(ModelError, match=rf"prepares a text \({names}\); the model would get other tokens"):
        write(tmp_path / "base", tokenizer_of(own()))


def test_a_tokenizer_that_adds_another_token_to_each_text_is_refused(tmp_path):
    own = spaced(PREPENDED)
    fast = tokenizer_of(own)
    opening = [("<s>", own.token_to_id("<s>")), ("<turn>", fast.convert_tokens_to_ids("<turn>"))]
    fast.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> <turn> $A", special_tokens=opening)
    with pytest.raises(ModelError, match=r"adds other tokens .* than its bos and eos token \('<turn>', "):
        write(tmp_path / "base", fast)


@pytest.mark.parametrize(
    ("chats", "prefixed", "kept"), [(False, True, "before a text"), (True, False, "after special")]
)
def test_the_space_before_a_text_is_that_of_the_run_s_rows(chats, prefixed, kept, tmp_path):
    """The rows of chats begin with a special token, after which such a tokenizer (Mistral's) adds none."""
    own = spaced(normalizers.Sequence([]), pre_tokenizers.Metaspace("▁", "first", False))
    own.normalizer = None
    (note,) = write(tmp_path / "base", tokenizer_of(own), chats=chats)
    assert "adds a space before a text only" in note and f"the file is right {kept}" in note
    assert field(tmp_path, "tokenizer.ggml.add_space_prefix") is prefixed


def field(folder: Path, name: str) -> Any:
    return gguf.GGUFReader(folder / "model.gguf").fields[name].contents()


def test_all_tokens_that_end_an_answer_are_in_the_file_or_in_a_note(tmp_path):
    fast = tokenizer_of(spaced(PREPENDED))
    end, *turns = fast.convert_tokens_to_ids(["</s>", "<turn>", "<end>", "<stop>"])
    assert write(tmp_path / "two", fast, ends=[end, *turns[:2]]) == []
    found = [field(tmp_path, f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    assert found == [end, *turns[:2]]
    assert write(tmp_path / "three", fast, ends=[end, *turns]) == [
        "GGUF has no place for '<stop>', at which answers end too"
    ]


TOKENS = """
import json, sys, urllib.request, xllamacpp
settings = xllamacpp.CommonParams()
settings.model.path, settings.n_ctx, settings.n_parallel, settings.warmup = sys.argv[1], 64, 1, False
server = xllamacpp.Server(settings)
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
for text in json.loads(sys.argv[2]):
    asked = json.dumps({"content": text, "add_special": True, "parse_special": True}).encode()
    kind = {"Content-Type": "application/json"}
    request = urllib.request.Request(server.listening_address + "/tokenize", asked, kind)
    print("FOUND", json.dumps(json.load(opener.open(request))["tokens"]))
"""


def rows_of(printed: str) -> list[Any]:
    return [json.loads(line[6:]) for line in printed.splitlines() if line.startswith("FOUND ")]


@pytest.mark.slow
@needs("llama.cpp")
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_llama_cpp_reads_the_same_tokens(kind, tmp_path):
    fast = tokenizer_of(TOKENIZERS[kind]())
    assert write(tmp_path / "base", fast) == []
    printed = run_peer("llama.cpp", TOKENS, str(tmp_path / "model.gguf"), json.dumps(SAMPLES), folder=tmp_path)
    wanted = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert rows_of(printed) == [wanted(text)["input_ids"] for text in SAMPLES]


@pytest.mark.slow
@needs("llama.cpp")
@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_computes_every_family_s_probabilities(family, tmp_path):
    """Weights are four times as large as drawn, so that the likeliest tokens are not about equal."""
    folder = small(tmp_path / "base", family)
    model = AutoModelForCausalLM.from_pretrained(folder)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(4)
    model.save_pretrained(folder)
    ids = np.random.default_rng(0).integers(5, 4000, (3, 100))
    np.save(tmp_path / "ids.npy", ids)
    write_model(folder, tmp_path / "model.gguf", "float32", "base")
    printed = run_peer(
        "llama.cpp", PROBABLE, str(tmp_path / "model.gguf"), str(tmp_path / "ids.npy"), "10", folder=tmp_path
    )
    with torch.no_grad():
        wanted = model.eval()(torch.from_numpy(ids)).logits[:, -1].log_softmax(-1)
    rows = rows_of(printed)
    gaps = [abs(wanted[n, int(token)].item() - value) for n, row in enumerate(rows) for token, value in row.items()]
    print(f"\n{family}: log-probabilities within {max(gaps):.2g}")
    assert len(gaps) == 30 and max(gaps) < 0.02
    assert [max(row, key=row.get) for row in rows] == [str(int(one)) for one in wanted.argmax(-1)]
