"""Plans models of 70 and 405 billion parameters on published machines, as a table: `scripts/plan_large_models`."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from peftlab.quantities import format_bytes
from peftlab.recipe.schema import Recipe
from peftlab.reports import MemoryReport
from peftlab.runs.plan import plan

# Llama 3.1 (arXiv 2407.21783, table 3); NVIDIA's HGX H100 and H200: 900 GB/s of NVLink in both directions together,
# and a network card of 400 Gb/s for each device between machines.
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "torch_dtype": "bfloat16"}
LLAMA |= {"num_key_value_heads": 8, "max_position_embeddings": 8192, "tie_word_embeddings": False}
MODELS = {
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
    "405B": {"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128},
}
METHODS = {"QLoRA": {"type": "qlora"}, "LoRA": {"type": "lora"}, "full": {"type": "full"}}
MACHINES = {"8 H100": ("H100", 8, "450GB"), "8 H200": ("H200", 8, "450GB"), "32 H100": ("H100", 32, "50GB")}
ROWS, LENGTH = 1, 4096


def recipe_of(folder: Path, method: dict) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"name": str(folder), "dtype": "bfloat16"},
            "method": method,
            "data": {"train": "-", "max_length": LENGTH},
            "training": {"steps": 1, "learning_rate": 1e-4, "batch_size": ROWS, "gradient_checkpointing": True},
        }
    )


def plan_of(model: str, method: str, machine: str, strategy: str = "fsdp2") -> MemoryReport:
    gpu, devices, bandwidth = MACHINES[machine]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(LLAMA | MODELS[model]))
        recipe = recipe_of(Path(folder), METHODS[method])
        return plan(recipe, gpu, device="cuda", devices=devices, strategy=strategy, bandwidth=bandwidth)


def line_of(model: str, method: str, machine: str) -> str:
    report = plan_of(model, method, machine)
    sent = report.communication
    assert sent is not None and sent.floor_seconds is not None
    phases = [format_bytes(report.phases[name]) for name in ("load", "steady_step")]
    state = sum(report.categories.get(name, 0) for name in ("frozen_weights", "quantisation_state"))
    cells = [model, method, machine, format_bytes(state), *phases, format_bytes(sent.total_bytes)]
    return "| " + " | ".join([*cells, f"{sent.floor_seconds:.2f} s", "yes" if report.fits else "no"]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options = parser.parse_args()
    print("| model | method | devices | frozen | load | step | sent a step | at least | fits |")
    print("|---|---|---|---|---|---|---|---|---|")
    for model in options.models:
        for method in METHODS:
            for machine in MACHINES:
                print(line_of(model, method, machine), flush=True)


if __name__ == "__main__":
    main()
