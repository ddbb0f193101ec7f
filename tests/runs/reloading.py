"""Finished runs of every method, task, type of the base and part that trains, and what plain libraries read of them."""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from peftlab.data.batches import collate
from peftlab.recipe.schema import Recipe
from peftlab.runs.bench import prepare
from peftlab.runs.directory import RunDirectory
from peftlab.runs.display import NoDisplay
from peftlab.runs.loading import fill_trained
from peftlab.runs.run import train
from peftlab.tasks import TASKS
from peftlab.world.open import open_world
from tests.gauntlet.cases import write_rows
from tests.gauntlet.small import build

METHODS: dict[str, dict[str, Any]] = {
    "full": {"type": "full"},
    "last layer": {"type": "full", "layers": 1},
    "lora": {"type": "lora", "rank": 4},
    "dora": {"type": "lora", "rank": 4, "dora": True, "rslora": True, "dropout": 0.1},
    "pissa": {"type": "lora", "rank": 4, "init": "pissa"},
    "qlora nf4": {"type": "qlora", "rank": 4},
    "qlora int8": {"type": "qlora", "rank": 4, "quantization": "int8"},
    "adapters": {"type": "adapters", "bottleneck": 4},
    "prefix": {"type": "prefix", "length": 3},
    "projection": {"type": "prefix", "length": 3, "projection": True},
    "prompt": {"type": "prefix", "kind": "prompt", "length": 3},
    "bitfit": {"type": "bitfit", "add_missing": True},
}
FAMILIES = {
    "causal-lm": "llama",
    "sequence-classification": "bert",
    "token-classification": "roberta",
    "regression": "qwen2",
    "multi-label-classification": "bert",
    "sequence-to-sequence": "bart",
}
DTYPES = ("float32", "bfloat16", "float16")
PARTS: dict[str, dict[str, Any]] = {
    "alone": {},
    "norms": {"unfreeze": ["*orm*"]},
    "tokens": {"add_tokens": ["<a>", "<b>"]},
}
STEPS = 2


@dataclass(frozen=True)
class Reload:
    """A run and the folder that it saves; `dtype` is that of the base's files, and of its frozen weights."""

    method: str
    task: str
    dtype: str = "float32"
    part: str = "alone"

    @property
    def name(self) -> str:
        return "-".join((self.method.replace(" ", "_"), self.task, self.dtype, self.part))

    @property
    def base(self) -> str:
        return f"{self.task}-{self.dtype}"


def cases(tasks=tuple(FAMILIES), dtypes=DTYPES, parts=tuple(PARTS), methods=tuple(METHODS)) -> list[Reload]:
    """Return the cases that a recipe can have."""
    found = [Reload(*one) for one in ((m, t, d, p) for t in tasks for d in dtypes for p in parts for m in methods)]
    return [one for one in found if _is_possible(one)]


def _is_possible(one: Reload) -> bool:
    kind = METHODS[one.method]["type"]
    if one.task == "sequence-to-sequence" and one.method in ("prefix", "projection"):
        return False
    if one.task == "regression" and one.method == "prompt":  # a decoder's classifier
        return False
    return not (one.part == "tokens" and (kind == "prefix" or one.method == "last layer"))


def write_base(folder: Path, one: Reload) -> Path:
    """Write a small base of a family in a type, with its tokenizer."""
    place = folder / one.base
    if not place.exists():
        import transformers

        made = build(FAMILIES[one.task], one.task, folder)
        assert isinstance(made, Path), made
        model = getattr(transformers, TASKS[one.task].auto_class).from_pretrained(made)
        model.to(getattr(torch, one.dtype)).save_pretrained(place)
        transformers.AutoTokenizer.from_pretrained(made).save_pretrained(place)
    return place


def recipe_of(folder: Path, one: Reload) -> Recipe:
    task, part = TASKS[one.task], dict(PARTS[one.part])
    rows = write_rows(task, folder)
    model = {"name": str(write_base(folder, one)), "task": one.task, "dtype": one.dtype}
    if tokens := part.pop("add_tokens", None):
        model["add_tokens"] = tokens
    return Recipe.model_validate(
        {
            "model": model,
            "method": METHODS[one.method] | part,
            "data": {
                "train": str(rows[0]),
                "evaluation": str(rows[1]),
                "format": task.formats[0].name,
                "max_length": 48,
            },
            "training": {"steps": STEPS, "batch_size": 3, "learning_rate": 1e-2},
            "evaluation": {"generation": {"max_new_tokens": 2, "examples": 0}},
            "run": {"output": str(folder / one.name), "device": "cpu", "plan": "off"},
        }
    )


def run(folder: Path, one: Reload) -> None:
    """Train a case's run."""
    result = train(recipe_of(folder, one), name=one.name, display=NoDisplay())
    assert result.status == "finished"


def load_plain(recipe: Recipe, weights: Path, one: Reload, bench: Any) -> Any:
    """Return the trained model as its reader gets it: the library's call at its defaults, in the run's own format."""
    import transformers

    auto = getattr(transformers, recipe.task.auto_class)
    if recipe.method.stores == "all":
        return auto.from_pretrained(weights)
    if not (weights / "adapter_config.json").exists():  # adapters and BitFit have no reader but peftlab
        return fill_trained(recipe, bench.base, weights, torch.device("cpu"))
    from peft import PeftModel

    if recipe.method.base_format != "plain":
        base = bench.base.model
    else:
        labels = {"num_labels": bench.base.model.config.num_labels} if recipe.task.has_labels else {}
        base = auto.from_pretrained(recipe.model.name, ignore_mismatched_sizes=True, **labels)
        base.config.get_text_config().pad_token_id = bench.dataset.pad_id
        if recipe.model.add_tokens:
            base.resize_token_embeddings(bench.base.model.get_input_embeddings().num_embeddings)
    return PeftModel.from_pretrained(base, weights)


@torch.no_grad()
def look(folder: Path, one: Reload) -> dict[str, Any]:
    """Return how a reader's losses differ from the run's (the largest, relative), and which stored weights differ."""
    from safetensors.torch import load_file

    recipe, directory = recipe_of(folder, one), RunDirectory.open(folder / one.name)
    bench = prepare(recipe, open_world("cpu"))
    model = load_plain(recipe, directory.weights, one, bench).eval()
    loss = recipe.task.loss(model)
    written = json.loads((directory.path / "scores.json").read_text(encoding="utf-8"))["after"]["loss"]
    batch = [collate([row], bench.dataset.pad_id) for row in bench.dataset.evaluation]
    counts = [row.supervised for row in bench.dataset.evaluation]
    foreign = recipe.method.stores == "all" or (directory.weights / "adapter_config.json").exists()
    with nullcontext() if foreign else bench.world.autocast(bench.precision):
        own = [float(loss.rows(model, inputs, [n]).losses) for inputs, n in zip(batch, counts, strict=True)]
    gap = max(abs(a - b) / max(1.0, abs(b)) for a, b in zip(own, written, strict=True))
    stored = {}
    for file in sorted(directory.weights.glob("*.safetensors")):
        stored |= load_file(file)
    return {"gap": gap, "written": written, "unequal": _unequal(stored, model)}


def _unequal(stored: dict[str, torch.Tensor], model: Any) -> list[str]:
    """Return the stored tensors whose very numbers, in the loaded model's type, none of its parameters has.

    PEFT reads a head that trained beside a base of 16 bits in the base's type; a full copy names its own.
    """
    kept: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        kept.setdefault(tuple(tensor.shape), []).append(tensor)
    return [
        name
        for name, tensor in stored.items()
        if not any(torch.equal(one, tensor.to(one.dtype)) for one in kept.get(tuple(tensor.shape), ()))
    ]


def main(folder: Path, names: Path) -> None:
    """Look at every case named in a file, in this fresh process, and write what was found."""
    found = {}
    for values in json.loads(names.read_text(encoding="utf-8")):
        one = Reload(**values)
        try:
            found[one.name] = look(folder, one)
        except Exception as error:
            if os.environ.get("SHOW_ERRORS"):
                raise
            found[one.name] = {"error": f"{type(error).__name__}: {error}"[:500]}
    (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
