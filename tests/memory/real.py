"""A real run's first two steps and an evaluation on the CPU, every storage tracked, for a recipe of a tiny model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from peftlab.data.batches import collate
from peftlab.data.token_rows import IGNORED, ClassRow, TextRow, TokenRow
from peftlab.memory.blueprint import Blueprint
from peftlab.memory.constants import ALLOCATION_ROUNDING
from peftlab.memory.ledger import Ledger
from peftlab.memory.private import cuda_scratch
from peftlab.memory.trace import Workload
from peftlab.models.load import load_model
from peftlab.models.recompute import recompute_activations
from peftlab.optimization.in_backward import InBackward
from peftlab.optimization.schedule import build_optimizer
from peftlab.optimization.step import optimizer_step
from peftlab.recipe.schema import Recipe
from peftlab.recipe.speed import Speed
from peftlab.runs.longest import groups_of, packed_share, supervised_share
from peftlab.speed.apply import speed_up
from peftlab.speed.loss import loss_of
from peftlab.speed.packing import training_layout
from peftlab.training.setup import Setup
from tests.simulated_cuda import simulated_cuda
from tests.training.small import small_setup

CPU = torch.device("cpu")
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 131}
PLAIN = {**SIZES, "intermediate_size": 128, "max_position_embeddings": 64}
GATED = {**PLAIN, "num_key_value_heads": 2}
CONFIGS = {
    "llama": ("LlamaForCausalLM", GATED),
    "qwen2": ("Qwen2ForCausalLM", GATED),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 131}),
    "gpt_neox": ("GPTNeoXForCausalLM", PLAIN),
    "opt": (
        "OPTForCausalLM",
        {**SIZES, "ffn_dim": 128, "word_embed_proj_dim": 64, "max_position_embeddings": 64},
    ),
    "bert": ("BertForSequenceClassification", PLAIN),
}
WINDOWED = {
    "mistral": ("MistralForCausalLM", GATED),
    "gemma2": ("Gemma2ForCausalLM", {**GATED, "head_dim": 16}),
    "gemma3_text": ("Gemma3ForCausalLM", {**GATED, "head_dim": 16}),
    "phi3": ("Phi3ForCausalLM", GATED),
    "starcoder2": ("Starcoder2ForCausalLM", GATED),
    "gpt_oss": ("GptOssForCausalLM", {**GATED, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2}),
}
RECURRENT = {
    "mamba": ("MambaForCausalLM", {**SIZES, "state_size": 8}),
    "qwen3_next": (
        "Qwen3NextForCausalLM",
        {
            **GATED,
            "head_dim": 16,
            "num_hidden_layers": 4,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
    ),
}
METHODS = {
    "full": {},
    "lora": {"rank": 4},
    "qlora": {"rank": 4},
    "adapters": {"bottleneck": 8},
    "prefix": {"length": 5},
    "bitfit": {},
}
LABELS = ["a", "b", "c"]
# A step as transformers and peft compute it.
PLAIN_STEP = {"training.speed": dict.fromkeys(Speed.model_fields, "off")}


def write_model(folder: Path, family: str, **changes) -> Path:
    """Write a folder with only the config of a tiny model."""
    architecture, sizes = (CONFIGS | WINDOWED | RECURRENT)[family]
    config = {"model_type": family, "architectures": [architecture], "pad_token_id": 0, **sizes, **changes}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def tiny_recipe(folder: Path, method: dict, length: int = 40, task: str = "causal-lm", **training) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"name": str(folder), "init": "random", "task": task},
            "method": method,
            "data": {"train": "-", "evaluation": "-", "max_length": length},
            "training": {"steps": 2, "learning_rate": 1e-3, **training},
            "evaluation": {"generation": {"examples": 0}},
            "run": {"device": "cpu"},
        }
    )


def rows_of(recipe: Recipe, ragged: bool) -> list[TokenRow]:
    """One step's rows: all as long as the recipe allows or, ragged, all but one three tokens shorter."""
    training, length = recipe.training, recipe.data.max_length
    random, rows = np.random.default_rng(0), []
    for i in range(training.batch_size * training.gradient_accumulation):
        size = length - 3 if ragged and i % training.batch_size else length
        ids = random.integers(1, 131, size).astype(np.int32)
        if recipe.model.task == "sequence-classification":
            rows.append(ClassRow(ids, i % len(LABELS)))
        else:
            rows.append(TextRow(ids, np.where(np.arange(size) < length // 2, IGNORED, ids).astype(np.int32)))
    return rows


def prepare(recipe: Recipe, rows: list[TokenRow]) -> Setup:
    """Return the loop's setup around the recipe's real model, random weights, method applied."""
    torch.manual_seed(0)
    classifies = recipe.model.task == "sequence-classification"
    labels = LABELS if classifies else None
    precision = recipe.training.precision
    loaded = load_model(recipe.model, precision=precision, device=CPU, labels=labels, **recipe.method.base_storage)
    model = recipe.method.apply(loaded.model, loaded.fresh)
    training = recipe.training
    recompute_activations(model, training.gradient_checkpointing)
    speed_up(model, recipe)
    optimizer = build_optimizer(model, recipe, CPU)
    updates = InBackward(optimizer) if training.optimizer_in_backward else None
    settings = {"batch_size": training.batch_size, "gradient_accumulation": training.gradient_accumulation}
    loss = loss_of(recipe.task, training.speed, model)
    layout = training_layout(model, recipe, 0)
    return replace(
        small_setup(rows=rows, layout=layout, **settings),
        recipe=recipe,
        model=model,
        loss=loss,
        optimizer=optimizer,
        in_backward=updates,
    )


def step(setup: Setup, number: int) -> None:
    optimizer_step(setup, setup.rows.batches(number), 1)


def evaluate(setup: Setup) -> None:
    setup.model.eval()
    rows = [setup.rows.rows[i] for i in setup.rows.numbers(1)[0]]
    batch, counts = collate(rows, 0), [row.supervised for row in rows]
    with torch.no_grad(), setup.world.autocast(setup.precision):
        for _ in range(2):
            scored = setup.loss.rows(setup.model, batch, counts)
    del scored


def track(recipe: Recipe, ragged: bool) -> Ledger:
    """Return the ledger of a real run: its phases are the segments' keys."""
    setup = prepare(recipe, rows_of(recipe, ragged))
    return track_setup(setup, Ledger())


def track_as_cuda(recipe: Recipe, ragged: bool) -> Ledger:
    """Return the ledger of a real run on the CPU with CUDA's types, rules, rounding and scratch space."""
    with simulated_cuda():
        setup = prepare(recipe, rows_of(recipe, ragged))
        groups = [{"params": group["params"]} for group in setup.optimizer.param_groups]
        optimizer = recipe.training.optimizer.plan(groups, "cuda")
        setup = replace(setup, precision=torch.bfloat16, foreach=True, optimizer=optimizer)
        return track_setup(setup, Ledger(ALLOCATION_ROUNDING, scratch=cuda_scratch))


def track_setup(setup: Setup, ledger: Ledger) -> Ledger:
    setup.model.train()
    with ledger.watch(setup.model, setup.optimizer), ledger:
        ledger.adopt(setup.model, setup.optimizer)
        for number, phase in enumerate(("first_step", "steady_step"), start=1):
            ledger.mark(phase)
            step(setup, number)
        ledger.mark("evaluation")
        evaluate(setup)
    return ledger


def work_of(blueprint: Blueprint, ragged: bool) -> Workload:
    """Return what `track` does with the rows of a recipe."""
    recipe, work = blueprint.recipe, blueprint.workload()
    rows = rows_of(recipe, ragged)[: recipe.training.batch_size]
    share = supervised_share(rows)
    return replace(
        work,
        padded=ragged,
        groups=groups_of(rows, len(rows)) if work.packed else (),
        supervised=packed_share(rows) if work.packed else share,
        evaluation_supervised=share,
    )
