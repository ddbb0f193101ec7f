"""The memory that a merge is planned to take is the memory that it takes."""

from __future__ import annotations

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from peftlab.memory.merging import READING_BYTES, ModelBytes, ShardBytes, plan_merge
from peftlab.methods.lora import LoRA
from peftlab.models.stored_tensors import Safetensors
from peftlab.runs import merge_shards
from peftlab.runs.merge_memory import MergeMeter

MIB = 2**20


def test_phases_are_sums_by_hand():
    shards = ShardBytes(stored=10, read=400, written=200, working=30)
    models = ModelBytes(trained=1000, merged=900, load=1200, forward=20, logits=50, needed=False)
    assert plan_merge(shards, None) == {"write": 640}
    assert above_reading(plan_merge(shards, models)) == {"load": 1210, "write": 690, "compare": 1080}
    whole = ModelBytes(trained=1000, merged=900, load=0, forward=20, logits=50, needed=True)
    assert above_reading(plan_merge(None, whole)) == {"load": 1170, "write": 1950, "compare": 2070}


def above_reading(phases: dict[str, int]) -> dict[str, int]:
    return {name: size - READING_BYTES for name, size in phases.items()}


def test_merging_by_shards_takes_what_is_planned(tmp_path, monkeypatch):
    """96 MiB in two files, written in files of 16 MiB: neither the whole model nor a second copy is in memory."""
    monkeypatch.setattr(merge_shards, "SHARD_BYTES", 16 * MIB)
    config = AutoConfig.for_model(
        "llama", vocab_size=64, hidden_size=1024, intermediate_size=2048, num_hidden_layers=2, num_attention_heads=8
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes = {name: tuple(one.shape) for name, one in model.state_dict().items()}
    names = sorted(shapes)
    (base := tmp_path / "base").mkdir()
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :])):
        save_file({name: torch.ones(shapes[name]) for name in part}, base / f"{number}.safetensors")
    stored = {
        f"{name.removesuffix('weight')}lora_{side}.weight": torch.ones((8, shape[1]) if side == "A" else (shape[0], 8))
        for name, shape in shapes.items()
        if "proj" in name
        for side in "AB"
    }
    shards = merge_shards.Shards(Safetensors(base), model, LoRA(rank=8), stored, added=[])
    planned = plan_merge(shards.plan(torch.float32), None)["write"]
    meter = MergeMeter(held=shards.stored_bytes)
    (tmp_path / "out").mkdir()
    with meter.phase("write"):
        shards.write(tmp_path / "out", torch.float32)
    measured = meter.report().peak_bytes
    # A process that has freed memory before uses that again, which is not seen.
    assert planned < 110 * MIB and measured < planned / 0.75
