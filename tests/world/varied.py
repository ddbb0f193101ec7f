"""Short runs of every task and setting whose results must not depend on the number of processes: `VARIANTS`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from peftlab.recipe.schema import Recipe
from tests.runs.chats import TEMPLATE
from tests.runs.recipes import even_model
from tests.tasks.answering import write_family, write_pairs
from tests.tasks.measuring import write_texts
from tests.tasks.tagging import write_model, write_sentences

Section = Mapping[str, Any]
LORA = {"type": "lora", "rank": 4, "init": "orthogonal"}
FULL = {"type": "full"}
STEPS = 4
TRAINED, HELD_OUT = 11, 5
NUMBERS = "texts"
CLASSES, TAGS, PAIRS, CHATS, LONGER = "classes", "tags", "pairs", "chats", "longer"


@dataclass(frozen=True)
class Variant:
    """What a run has beside its defaults. A step has two micro-batches, or twice `accumulation`, among all processes.

    `model` and `rows` are names of what `write_files` writes; `refused` says why a strategy cannot train it.
    """

    model: str = "llama"
    base: Section = field(default_factory=dict)
    task: str = "causal-lm"
    method: Section = field(default_factory=lambda: LORA)
    rows: str = PAIRS
    data: Section = field(default_factory=dict)
    training: Section = field(default_factory=dict)
    evaluation: Section = field(default_factory=dict)
    run: Section = field(default_factory=dict)
    accumulation: int = 1
    refused: Mapping[str, str] = field(default_factory=dict)
    bound: float = 2e-5
    """Of the differences of losses, metrics and scores."""


def write_files(folder: Path) -> Path:
    """Write the models and rows of all variants to a folder, and return it."""
    model, tokenizer = (one.from_pretrained(even_model()) for one in (AutoModelForCausalLM, AutoTokenizer))
    tokenizer.chat_template = TEMPLATE
    for name in ("tied", "llama"):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        model.config.tie_word_embeddings = False
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().flip(0))
    write_model(folder / "bert")
    for family in ("t5", "bart"):
        write_family(folder / family, family)
    for part, count, seed in (("train", TRAINED, 1), ("held_out", HELD_OUT, 2)):
        write_texts(folder / f"{NUMBERS}-{part}.jsonl", count, seed)
        write_sentences(folder / f"{TAGS}-{part}.jsonl", count, seed)
        write_pairs(folder / f"{PAIRS}-{part}.jsonl", count, seed)
        write_pairs(folder / f"{LONGER}-{part}.jsonl", 3 * count, seed + 2)
        write_classes(folder / f"{CLASSES}-{part}.jsonl", count, seed)
        write_chats(folder / f"{CHATS}-{part}.jsonl", count, seed)
    return folder


def write_classes(path: Path, count: int, seed: int) -> None:
    """Write random texts of two lengths and one of three classes."""
    random = Random(seed)
    rows = [
        {"text": " ".join(random.choices("open the file and return its lines".split(), k=random.randint(2, 9)))}
        | {"label": ("read", "write", "none")[number % 3]}
        for number in range(count)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))


def write_chats(path: Path, count: int, seed: int) -> None:
    """Write chats of one to three answers, of which some are not supervised."""
    random = Random(seed)
    rows = []
    for _ in range(count):
        turns: list[dict[str, Any]] = []
        for turn in range(random.randint(1, 3)):
            word = random.choice(["north", "south", "east", "west"])
            answer = {"role": "assistant", "content": f"going {word} " * random.randint(1, 3)}
            turns += [{"role": "user", "content": f"walk {word}"}, answer | ({"weight": 0} if turn == 1 else {})]
        rows.append({"messages": turns})
    path.write_text("\n".join(map(json.dumps, rows)))


def recipe_of(variant: Variant, files: Path, output: Path, processes: int, **run: Any) -> Recipe:
    """Return the recipe of a variant for so many processes that share the rows of a step."""
    rows = [str(files / f"{variant.rows}-{part}.jsonl") for part in ("train", "held_out")]
    data = {"train": rows[0], "evaluation": rows[1], "max_length": 48, "long": "cut"}
    data = {name: _placed(value, files) for name, value in (data | dict(variant.data)).items()}
    training = {"batch_size": 2, "learning_rate": 5e-3, "schedule": "constant", "frozen_dropout": "off"}
    length = {} if "epochs" in variant.training else {"steps": STEPS}
    training |= length | {"gradient_accumulation": 2 * variant.accumulation // processes}
    evaluation = {"every": 2, "batch_size": 2, "generation": {"examples": 2, "rows": 3, "max_new_tokens": 4}}
    return Recipe.model_validate(
        {
            "model": {"name": str(files / variant.model), "task": variant.task} | dict(variant.base),
            "method": dict(variant.method),
            "data": data,
            "training": training | dict(variant.training),
            "evaluation": evaluation | dict(variant.evaluation),
            "run": {"output": str(output), "device": "cpu", "plan": "off", "log_every": 1} | dict(variant.run) | run,
        }
    )


def _placed(value: Any, files: Path) -> Any:
    """Return a setting of the data with the folder of files in place of `{files}`."""
    if isinstance(value, str):
        return value.replace("{files}", str(files))
    if isinstance(value, list):
        return [_placed(one, files) for one in value]
    return {name: _placed(one, files) for name, one in value.items()} if isinstance(value, dict) else value


def _whole(task: str, rows: str, metrics: tuple[str, ...], kind: str = "", **more: Any) -> Variant:
    data = ({"format": kind} if kind else {}) | more.pop("data", {})
    return Variant(task=task, rows=rows, data=data, evaluation={"metrics": ("loss", *metrics)}, **more)


def _classes(**more: Any) -> Variant:
    return _whole("sequence-classification", CLASSES, ("accuracy", "f1_macro"), **more)


def _tags(**more: Any) -> Variant:
    return _whole("token-classification", TAGS, ("span_f1", "span_precision", "span_recall"), "tokens", **more)


def _numbers(**more: Any) -> Variant:
    return _whole("regression", NUMBERS, ("rmse", "mae", "pearson", "spearman"), "regression", **more)


def _labels(**more: Any) -> Variant:
    metrics = ("label_f1_micro", "label_f1_macro", "label_match")
    return _whole("multi-label-classification", NUMBERS, metrics, "multi-label", **more)


def _answers(**more: Any) -> Variant:
    return _whole("sequence-to-sequence", PAIRS, ("perplexity", "exact_match", "bleu"), **more)


def _training(**training: Any) -> Variant:
    return Variant(training=training)


BY_PARTS = {"tensor": "prefix", "fsdp2": "parts by themselves", "fsdp2-offload": "parts by themselves"}
NO_PLAN = {"tensor": "no tensor parallel plan"}
BITFIT, ADAPTERS = {"type": "bitfit"}, {"type": "adapters", "bottleneck": 8}
TEXTS = {"metrics": ("loss", "perplexity", "exact_match", "bleu", "token_f1")}
ENDS = {"every": 1, "patience": 2, "metrics": ("loss", "perplexity")}
# Where the learning rate is so high that the loss rises, steps are large, and rounding with them.
LARGE = 5e-4
# The first exact match is none, and none is better.
NO_BETTER = {"every": 1, "patience": 2, "metrics": ("loss", "exact_match"), "best": "exact_match"}
MIXED = [{"source": "{files}/pairs-train.jsonl", "weight": 2}, {"source": "{files}/longer-train.jsonl", "weight": 1}]
TASKS = {
    "classes": _classes(),
    "classes bert full": _classes(model="bert", method=FULL, refused=NO_PLAN),
    "classes bert qlora": _classes(model="bert", method={"type": "qlora", "rank": 4}, refused={"tensor": "packed"}),
    "tags": _tags(),
    "tags bert adapters": _tags(model="bert", method=ADAPTERS, refused=NO_PLAN),
    "numbers": _numbers(),
    # Its predictions are nearly equal, so that their correlation is a quotient of rounding errors.
    "numbers bert bitfit": replace(
        _numbers(model="bert", method=BITFIT, refused=NO_PLAN), evaluation={"metrics": ("loss", "rmse", "mae")}
    ),
    "labels": _labels(),
    "labels bert prefix": _labels(model="bert", method={"type": "prefix", "length": 3}, refused=BY_PARTS),
    "answers t5": _answers(model="t5", refused=NO_PLAN),
    "answers t5 full": _answers(model="t5", method=FULL, refused=NO_PLAN),
    "answers bart full": _answers(model="bart", method=FULL, refused=NO_PLAN),
    "answers bart bitfit": _answers(model="bart", method=BITFIT, refused=NO_PLAN),
    "chats": Variant(rows=CHATS, evaluation=TEXTS),
    "texts": Variant(evaluation=TEXTS),
}
ROWS = {
    "accumulated": Variant(training={"batch_size": 1}, accumulation=3),
    "three rows": Variant(data={"train_rows": 3}, training={"epochs": 3}),
    "five rows": Variant(data={"train_rows": 5}, training={"epochs": 2}, accumulation=2),
    "seven rows": Variant(data={"train_rows": 7}, training={"epochs": 1.5}, accumulation=2),
    "one row": Variant(data={"train_rows": 1}, training={"epochs": 9}),
    "one held-out row": Variant(data={"evaluation_rows": 1, "test": "{files}/longer-held_out.jsonl", "test_rows": 3}),
    "batches of four": Variant(data={"evaluation_rows": 3}, evaluation={"batch_size": 4}),
    "packed": Variant(training={"speed": {"packing": "on"}}),
    "packed classes": _classes(training={"speed": {"packing": "on"}}),
    "packed tags": _tags(model="bert", training={"speed": {"packing": "on"}}, refused=NO_PLAN),
    "packed chats": Variant(rows=CHATS, training={"speed": {"packing": "on"}}),
    "mixed": Variant(data={"train": MIXED}),
    "mixed epochs": Variant(data={"train": MIXED, "stopping_strategy": "all_exhausted"}, training={"epochs": 1}),
    "streamed": Variant(data={"streaming": True, "shuffle_buffer": 4}),
    "streamed mixed": Variant(data={"train": MIXED, "streaming": True, "shuffle_buffer": 4}, accumulation=2),
    "streamed classes": _classes(data={"streaming": True, "shuffle_buffer": 3}, training={"batch_size": 3}),
    "general": Variant(data={"general": "{files}/classes-held_out.jsonl"}),
}
SETTINGS = {
    "sampled": Variant(evaluation={"generation": {"temperature": 1.0, "top_p": 0.9, "examples": 3}} | TEXTS),
    "beams": Variant(evaluation={"generation": {"beams": 2, "examples": 3}} | TEXTS),
    "early end": Variant(training={"steps": 12}, evaluation=NO_BETTER, run={"keep": "best"}),
    "best and last": Variant(
        training={"steps": 6, "learning_rate": 0.1}, evaluation=ENDS, run={"keep": "both"}, bound=LARGE
    ),
    "ema": Variant(
        training={"average": {"ema": 0.8}},
        refused=dict.fromkeys(("zero2", "zero3", "tensor"), "training.average.ema"),
    ),
    "ema best": Variant(
        training={"steps": 6, "learning_rate": 0.1, "average": {"ema": 0.8}},
        evaluation=ENDS,
        run={"keep": "both"},
        bound=LARGE,
        refused=dict.fromkeys(("zero2", "zero3", "tensor"), "training.average.ema"),
    ),
    "mean of checkpoints": Variant(training={"average": {"last": 3}}, run={"save_every": 1, "keep_checkpoints": 3}),
    "clipped": _training(clip=0.01),
    "not clipped": _training(clip=None),
    "sgd": _training(optimizer="sgd", learning_rate=0.1),
    "momentum": _training(optimizer={"type": "sgd", "momentum": 0.9, "nesterov": True}, learning_rate=0.05),
    "adamw": _training(optimizer={"type": "adamw", "betas": [0.8, 0.9], "eps": 1e-6}, weight_decay=0.3, warmup=2),
    "recomputed": _training(gradient_checkpointing=True),
    "recomputed one": _training(gradient_checkpointing=1),
    "cosine": _training(schedule="cosine", warmup=0.25),
    "speed off": _training(speed=dict.fromkeys(("loss", "packing", "linear", "feed_forward", "norm", "rotary"), "off")),
    "bfloat16": Variant(training={"precision": "bfloat16"}, evaluation={"generation": {"examples": 0}}, bound=2e-3),
}
METHODS = {
    "tied full": Variant(model="tied", method=FULL),
    "tied embeddings": Variant(model="tied", method=LORA | {"unfreeze": ["embed_tokens"]}),
    "embeddings": Variant(method=LORA | {"unfreeze": ["embed_tokens", "lm_head"]}),
    "new tokens": Variant(rows=CHATS, base={"add_tokens": ["north"]}, refused={"zero3": "model.add_tokens"}),
    "norms": Variant(method={"type": "bitfit", "unfreeze": ["*norm*"]}),
    "biases": _classes(model="bert", method=LORA | {"bias": "all"}, refused=NO_PLAN),
    "dora": Variant(method=LORA | {"dora": True, "rslora": True}, refused={"tensor": "DoRA"}),
    "pissa": Variant(method=LORA | {"init": "pissa"}),
    "rank one": Variant(method=LORA | {"rank": 1, "init": "gaussian", "targets": ["q_proj"]}),
    "rank three": Variant(method=LORA | {"rank": 3, "init": "gaussian"}),
    "attention": Variant(method=LORA | {"targets": "attention", "freeze": ["*layers.0*"]}),
    "last layers": _classes(method={"type": "full", "layers": 1}),
    "prefix": Variant(method={"type": "prefix", "length": 3}, refused={"tensor": "prefix"}),
    "prompt": Variant(
        method={"type": "prefix", "kind": "prompt", "length": 3},
        refused=dict.fromkeys(("fsdp2", "fsdp2-offload", "zero3", "tensor"), "prompt|prefix"),
    ),
    "projection": Variant(
        method={"type": "prefix", "length": 3, "projection": True},
        refused=dict.fromkeys(("fsdp2", "fsdp2-offload", "zero3", "tensor"), "projection|prefix"),
    ),
}
VARIANTS = TASKS | ROWS | SETTINGS | METHODS
