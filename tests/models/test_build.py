"""Building from a config alone."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from peftlab.errors import ModelError
from peftlab.models.build import build_meta
from peftlab.parameters.report import parameter_report
from peftlab.recipe.schema import Model
from peftlab.world.hardware import resident_peak_bytes
from tests.apart import call_apart
from tests.gauntlet.small import small_config

LLAMA_405B = {
    "model_type": "llama",
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}


def print_count(folder: Path) -> None:
    """Print the count, the processor seconds of building and counting, and the process's peak memory.

    Processor seconds, because a busy machine has others to serve; the peak as /proc has it, because what getrusage
    says includes the parent's, from which the process was forked.
    """
    started = time.process_time()
    total = parameter_report(build_meta(Model(name=str(folder)))[0]).total
    print(total, time.process_time() - started, resident_peak_bytes())


def test_405_billion_parameters_are_counted_in_seconds_and_little_memory(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_405B))
    log = tmp_path / "log"
    assert call_apart(print_count, tmp_path, log=log) == 0, log.read_text()
    total, seconds, peak_bytes = log.read_text().split()
    assert int(total) == 405_853_388_800
    assert float(seconds) < 10 and int(peak_bytes) < 2 * 1024**3


def test_config_alone_makes_the_head_of_a_classifier_fresh(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA_405B, "num_hidden_layers": 1}))
    section = Model(name=str(tmp_path), task="sequence-classification")
    assert build_meta(section, ["a", "b"])[1] == {"score.weight"}


def test_impossible_sizes_are_one_line(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA_405B, "hidden_size": "wide"}))
    with pytest.raises(ModelError) as caught:
        build_meta(Model(name=str(tmp_path)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "task"), [("gemma2", "causal-lm"), ("vaultgemma", "causal-lm"), ("t5gemma", "sequence-to-sequence")]
)
def test_attention_with_capped_scores_is_not_computed_by_sdpa_whatever_the_version_of_transformers(
    tmp_path, family, task
):
    small_config(family).save_pretrained(tmp_path)
    model, _ = build_meta(Model(name=str(tmp_path), task=task))
    parts = [module.config for module in model.modules() if hasattr(module, "q_proj") and hasattr(module, "config")]
    assert parts and {part._attn_implementation for part in parts} == {"eager"}
    with pytest.raises(ModelError, match=f"{family} caps its attention scores .* use auto or eager"):
        build_meta(Model(name=str(tmp_path), task=task, attention="sdpa"))
    small_config("llama").save_pretrained(tmp_path)
    assert build_meta(Model(name=str(tmp_path), attention="sdpa"))[0].config._attn_implementation == "sdpa"
