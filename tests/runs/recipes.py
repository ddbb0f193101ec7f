"""Short recipes on the shipped model and data, for tests that run a recipe for real."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from peftlab.models.reference import resolve
from peftlab.recipe.schema import Recipe

METHODS = {
    "full": {"type": "full", "layers": 2},
    "lora": {"type": "lora", "rank": 4},
    "qlora": {"type": "qlora", "rank": 4},
    "adapters": {"type": "adapters", "bottleneck": 8},
    "prefix": {"type": "prefix", "length": 4},
    "bitfit": {"type": "bitfit"},
}
RATES = {"full": 1e-3, "lora": 5e-3, "qlora": 5e-3, "adapters": 5e-3, "prefix": 3e-2, "bitfit": 1e-2}


def short_sections(method: str, output: Path, **training: Any) -> dict[str, Any]:
    settings = {"steps": 6, "batch_size": 4, "learning_rate": RATES[method]} | training
    return {
        "model": {"name": "builtin:tiny"},
        "method": METHODS[method],
        "data": {
            "train": "builtin:docstrings[train]",
            "evaluation": "builtin:docstrings[test]",
            "max_length": 96,
            "train_rows": 64,
            "evaluation_rows": 16,
        },
        "training": settings,
        "evaluation": {"generation": {"max_new_tokens": 8, "examples": 1}},
        "run": {"output": str(output), "device": "cpu", "log_every": 2, "plan": "off"},
    }


LAYERS_KEPT = 2


@functools.cache
def shallow_model() -> Path:
    """Return a folder with the shipped model cut to its first two layers: a short run of it takes half the time."""
    folder = Path(tempfile.mkdtemp(prefix="peftlab-shallow-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    source = resolve("builtin:tiny").folder
    assert source is not None
    shutil.copytree(source, folder, dirs_exist_ok=True)
    config, weights = folder / "config.json", folder / "model.safetensors"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": LAYERS_KEPT}))
    layer_of = {name: int(name.partition(".layers.")[2].partition(".")[0] or 0) for name in load_file(weights)}
    kept = {name: tensor for name, tensor in load_file(weights).items() if layer_of[name] < LAYERS_KEPT}
    save_file(kept, weights, {"format": "pt"})
    return folder


@functools.cache
def even_model() -> Path:
    """Return a folder with the shallow model, its three heads halved: six can be shared by two processes."""
    folder = Path(tempfile.mkdtemp(prefix="peftlab-even-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    shutil.copytree(shallow_model(), folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    heads, width = config["num_attention_heads"], config["hidden_size"] // config["num_attention_heads"]
    halved = {"num_attention_heads": 2 * heads, "num_key_value_heads": 2 * heads, "head_dim": width // 2}
    (folder / "config.json").write_text(json.dumps(config | halved))
    return folder


def shallow_sections(method: str, output: Path, **training: Any) -> dict[str, Any]:
    return short_sections(method, output, **training) | {"model": {"name": str(shallow_model())}}


def shallow_recipe(method: str, output: Path, **training: Any) -> Recipe:
    return Recipe.model_validate(shallow_sections(method, output, **training))


def short_recipe(method: str, output: Path, **training: Any) -> Recipe:
    return Recipe.model_validate(short_sections(method, output, **training))
