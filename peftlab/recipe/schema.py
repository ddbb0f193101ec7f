"""The recipe: every field that a user can set, its type, its default and its one line of documentation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from peftlab.evaluation.metrics import METRICS
from peftlab.methods import AnyMethod

if TYPE_CHECKING:
    MetricName = str
else:
    MetricName = Literal[tuple(METRICS)]

COLUMN_ROLES = {
    "text": ("text",),
    "completion": ("prompt", "completion"),
    "chat": ("messages",),
    "classification": ("text", "text_pair", "label"),
}
TEMPLATE_ROLES = {"text": "text", "completion": "prompt", "classification": "text"}
PositiveInt = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Model(Section):
    name: str = Field(min_length=1)
    """Hub id, local folder, `.gguf` file, `builtin:NAME`, or `package:PACKAGE/PATH` inside an installed package."""
    tokenizer: str | None = Field(None, min_length=1)
    """Take another model's tokenizer: for a folder that holds only a `config.json`, with `init: random`."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    task: Literal["causal-lm", "sequence-classification"] = "causal-lm"
    """What the model is for."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of frozen weights: auto is bfloat16 on CUDA and float32 on the CPU. What trains is always float32."""
    init: Literal["pretrained", "random"] = "pretrained"
    """Take the checkpoint's weights, or random ones from its `config.json` (for counting, planning and speed)."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """Attention implementation of transformers."""
    trust_remote_code: bool = False
    """Run code that the model repository ships. Off unless you have read that code."""


class Data(Section):
    train: str = Field(min_length=1)
    """Source of the training rows: hub data set, jsonl/json/csv/parquet file or `builtin:NAME`; split in brackets."""
    evaluation: str | PositiveInt | Annotated[float, Field(gt=0, lt=1)] | None = None
    """Source of the evaluation rows, or how many (a number) or what part (a fraction) of `train` to hold out."""
    test: str | PositiveInt | Annotated[float, Field(gt=0, lt=1)] | None = None
    """Rows on which the result is reported and nothing is chosen: read once before and once after training."""
    general: str | None = Field(None, min_length=1)
    """Source with a column `text`, general text on which forgetting is measured: its loss before and after."""
    format: Literal["text", "completion", "chat", "classification"] = "completion"
    """What a row is: running text, prompt and completion, messages, or text(s) and a label."""
    columns: dict[str, str] = Field(default_factory=dict)
    """The file's name for each role: text, text_pair, label, prompt, completion, messages."""
    template: str | None = None
    """Builds the prompt (or the text) from columns: `Facts: {mr}\\nText:`."""
    max_length: PositiveInt = 512
    """Longest row in tokens; longer ones lose their prompt's beginning, then are counted and reported."""
    allow_dropped: float = Field(0.1, ge=0, le=1)
    """Part of the rows that may be left out because no token in them is supervised; more of them end the run."""
    train_rows: PositiveInt | None = None
    """Use only this many training rows (drawn by the seed)."""
    evaluation_rows: PositiveInt | None = None
    """Use only this many evaluation rows (drawn by the seed)."""
    test_rows: PositiveInt | None = None
    """Use only this many test rows (drawn by the seed)."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Seed by which rows are held out and drawn (default: `run.seed`); runs that are compared share it."""


class Training(Section):
    steps: PositiveInt | None = None
    """Optimiser steps; exactly one of `steps` and `epochs`."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the training rows, rounded up to whole steps."""
    batch_size: PositiveInt = 8
    """Rows of one micro-batch on one device."""
    gradient_accumulation: PositiveInt = 1
    """Micro-batches of one optimiser step."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Course of the rate after the warm-up: constant, or down to zero."""
    warmup: Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Steps (a whole number) or part of all steps (a fraction) in which the rate rises from zero."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay, never on biases, norms or prefixes."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = "adamw"
    """AdamW, or bitsandbytes' 8-bit and paged ones (CUDA)."""
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest gradient norm; null does not clip."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    fit: bool = False
    """Where the plan says that a micro-batch does not fit, take smaller ones, as many more, so that the step stays."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of computation: auto is bfloat16 on CUDA, float32 on the CPU."""
    frozen_dropout: Literal["keep", "off"] = "keep"
    """Whether the base model's own dropout stays on while training, as in the papers."""


class Generation(Section):
    max_new_tokens: PositiveInt = 64
    """Longest answer in tokens."""
    beams: PositiveInt = 1
    """Beams of beam search."""
    temperature: float = Field(0.0, ge=0)
    """0 takes the likeliest token, above it samples."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus of sampling."""
    rows: PositiveInt = 64
    """Evaluation rows that are generated for exact match, BLEU and ROUGE."""
    examples: Annotated[int, Field(ge=0)] = 2
    """Generated examples kept in the result."""


class Evaluation(Section):
    every: PositiveInt | None = None
    """Steps between evaluations; there is always one before and one after training."""
    metrics: tuple[MetricName, ...] = ("loss",)
    """What to measure on the evaluation rows."""
    batch_size: PositiveInt | None = None
    """Rows of one evaluation batch (default: training's)."""
    latency: bool = False
    """Measure what the result costs in use after training: seconds of a pass beside the base's, and merged into it."""
    generation: Generation = Generation()
    """How text is generated."""


class Run(Section):
    output: str | None = None
    """Run directory (default: `runs/NAME`, NAME being the recipe file's folder and name)."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of initialisation, data order and dropout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run: auto takes CUDA where there is one."""
    plan: Literal["refuse", "report", "off"] = "refuse"
    """Predict the memory before loading: and refuse to start what will not fit, or only report it; or do not."""
    memory: str | None = Field(None, min_length=1)
    """What the plan may count on: `24GiB`, or the name of a GPU (default: what is free)."""
    memory_snapshot: bool = False
    """Write `memory_snapshot.pickle`, the allocations of the training, for pytorch.org/memory_viz (CUDA; slows it)."""
    save_every: PositiveInt | None = None
    """Steps between checkpoints, from which `train --resume` goes on exactly; the trained weights are always saved."""
    keep_checkpoints: PositiveInt = 2
    """How many of the latest checkpoints are kept; the best by held-out loss is kept beside them."""
    max_seconds: Annotated[float, Field(gt=0)] | None = None
    """Seconds within which the run saves a checkpoint and ends, for jobs with a time limit."""
    stop_after: PositiveInt | None = None
    """Step after which the run saves a checkpoint and ends, as a time limit would."""
    log_every: PositiveInt = 10
    """Steps between lines of `metrics.jsonl`."""
    trackers: tuple[str, ...] = ()
    """Trackers of accelerate: tensorboard, wandb, mlflow, ..."""


class Recipe(Section):
    """One run: a model, a method, data, training, evaluation."""

    model: Model
    """The base model."""
    method: AnyMethod
    """What trains."""
    data: Data
    """What it is trained and evaluated on."""
    training: Training
    """How it is trained."""
    evaluation: Evaluation = Evaluation()
    """How it is evaluated."""
    run: Run = Run()
    """Where the run goes, its seed and its logging."""
