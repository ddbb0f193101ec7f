"""The recipe: every field that a user can set, its type, its default and its one line of documentation."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from peftlab.methods import AnyMethod
from peftlab.metrics import METRICS, RENAMED
from peftlab.metrics.match import Normalisation
from peftlab.optimizers import AdamW, AnyOptimizer
from peftlab.recipe.average import Average
from peftlab.recipe.checkpointing import AUTO, Checkpointing
from peftlab.recipe.choices import OneOf
from peftlab.recipe.section import Section
from peftlab.recipe.speed import Speed
from peftlab.tasks import DEFAULT_TASK, TASKS, Task, list_formats
from peftlab.tasks.base import LIKELY

PositiveInt = Annotated[int, Field(ge=1)]


def read_day(value: Any) -> Any:
    """Return a day as text. YAML reads one without quotes as a date. Raises ValueError for a day that is none."""
    if isinstance(value, str):
        try:
            return date.fromisoformat(value).isoformat()
        except ValueError:
            raise ValueError(f"{value!r} is not a day; write it as 2026-01-31") from None
    return value.isoformat() if type(value) is date else value


def read_size(value: Any) -> Any:
    """Return a number without a unit as text, so that the error is of the unit that it lacks."""
    return str(value) if type(value) in (int, float) else value


Day = Annotated[str, BeforeValidator(read_day)]


class Model(Section):
    name: str = Field(min_length=1)
    """Hub id, local folder, `.gguf` file, `builtin:NAME`, or `package:PACKAGE/PATH` inside an installed package."""
    tokenizer: str | None = Field(None, min_length=1)
    """Model whose tokenizer to use instead, for a folder that contains only a `config.json`, with `init: random`."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    task: Annotated[str, OneOf(lambda: TASKS)] = DEFAULT_TASK
    """Task of the model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the frozen weights: auto follows `training.precision`, else bfloat16 on CUDA, float32 on the CPU."""
    init: Literal["pretrained", "random"] = "pretrained"
    """Load the checkpoint's weights, or make random ones from its `config.json` (for counting, planning and timing)."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """Attention implementation of transformers; `auto` is `eager` where scores are capped (Gemma 2)."""
    add_tokens: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """New tokens for the tokenizer. Their embeddings train with the method, and nothing else of the embeddings does."""
    trust_remote_code: bool = False
    """Run code that the model repository ships. Set it only after you have read that code."""


class DataSource(Section):
    """One of several sources."""

    source: str = Field(min_length=1)
    """Source of rows, as `data.train` names one."""
    weight: Annotated[float, Field(gt=0)] | None = None
    """Share of the training rows that are drawn from this source, relative to the other weights."""
    columns: dict[str, str] | None = None
    """Column for each role in this source (default: `data.columns`)."""
    template: str | None = None
    """Template for this source (default: `data.template`)."""


Named = Annotated[str, Field(min_length=1)]
Sources = Named | Annotated[tuple[Named | DataSource, ...], Field(min_length=1)]
"""One source, or a list of sources and of sections about them."""


def list_sources(sources: Any) -> list[DataSource]:
    """Return the sources that a recipe names: one, or the entries of a list; none for a number of rows."""
    if isinstance(sources, str):
        return [DataSource(source=sources)]
    entries = sources if isinstance(sources, tuple) else ()
    return [DataSource(source=one) if isinstance(one, str) else one for one in entries]


class Data(Section):
    train: Sources
    """Training rows: file, glob, folder, hub data set (`OWNER/NAME:SUBSET`) or `builtin:NAME`, or a list of them;
    `[SPLIT]` or `[SPLIT[:80%]]` selects a part."""
    evaluation: Sources | PositiveInt | Annotated[float, Field(gt=0, lt=1)] | None = None
    """Evaluation rows: a source, or how many (an integer) or what fraction of the `train` rows to hold out."""
    test: Sources | PositiveInt | Annotated[float, Field(gt=0, lt=1)] | None = None
    """Test rows, for the reported result only and never for choices: evaluated once before and once after training."""
    general: str | None = Field(None, min_length=1)
    """Source of general text (column `text`) to measure forgetting: its loss before and after training."""
    format: Annotated[str, OneOf(list_formats)] | None = None
    """What a row is: running text, prompt and completion, messages, text(s) with a label, labels or a number, or words
    and their tags (default: recognised from the columns)."""
    on_error: Literal["stop", "skip"] = "stop"
    """For a bad row: stop with its file and line, or skip and count it, up to `allow_dropped` of all rows."""
    streaming: bool = False
    """Read the training rows while training runs, in constant memory; needs `training.steps`."""
    shuffle_buffer: PositiveInt = 10_000
    """Rows of the buffer in which streamed rows are shuffled; 1 keeps their order."""
    stopping_strategy: Literal["first_exhausted", "all_exhausted"] = "first_exhausted"
    """Where sources have weights, an epoch ends when the first of them, or every one, was read to its end."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Column of each role: text, text_pair, label, labels, target, prompt, completion, messages, tools, words, tags;
    `a.b` is nested."""
    template: str | None = None
    """Template that builds the prompt (or the text) from columns: `Facts: {mr}\\nText:`."""
    supervise: Literal["all", "last"] = "all"
    """Assistant turns of a chat that are supervised; turns with `weight: 0` or `train: false` never are."""
    thinking: bool = True
    """Whether the thinking part of a chat's answers is supervised; else it is read as part of the prompt."""
    template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the model's chat template, the same at training, evaluation and generation."""
    date: Day | None = None
    """Day that a chat template writes as today's, as 2026-01-31 (default: the day on which rows are tokenised)."""
    tools: str | None = Field(None, min_length=1)
    """Column of the tools that a chat may call (default: `tools`, if there is one)."""
    max_length: PositiveInt = 512
    """Longest row in tokens; longer ones are shortened or left out, as `long` and `truncate` say, and reported."""
    long: Literal["chunk", "cut", "skip"] | None = None
    """Rows that are longer: cut into several (running text only), shortened, or left out (default: chunk for text)."""
    overlap: Annotated[int, Field(ge=0)] = 0
    """Tokens of a document that each chunk repeats of the one before, as context that is not supervised."""
    truncate: Literal["auto", "left", "middle"] = "auto"
    """What is cut first: auto takes a chat's oldest turns, of other prompts the beginning; else any prompt's middle."""
    group_by: str | None = Field(None, min_length=1)
    """Column whose rows stay together in a split, or `prompt`, or `row` (default: `prompt` where prompts repeat)."""
    max_target_length: PositiveInt | None = None
    """Longest answer in tokens where an encoder reads the prompt (sequence-to-sequence); default: `max_length`."""
    allow_dropped: float = Field(0.1, ge=0, le=1)
    """Largest fraction of rows that may be dropped: without supervised tokens, or bad; above it the run stops."""
    train_rows: PositiveInt | None = None
    """Use only this many training rows (drawn by the seed)."""
    evaluation_rows: PositiveInt | None = None
    """Use only this many evaluation rows (drawn by the seed)."""
    test_rows: PositiveInt | None = None
    """Use only this many test rows (drawn by the seed)."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Seed for holding out and drawing rows (default: `run.seed`); compared runs should share it."""

    @property
    def target_limit(self) -> int:
        """The longest answer in tokens where an encoder reads the prompt."""
        return self.max_length if self.max_target_length is None else self.max_target_length


class Training(Section):
    steps: PositiveInt | None = None
    """Optimiser steps; exactly one of `steps` and `epochs`."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes through the training rows, rounded up to whole steps."""
    batch_size: PositiveInt = 8
    """Rows of one micro-batch on one device."""
    gradient_accumulation: PositiveInt = 1
    """Micro-batches of one optimiser step."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Learning rate after the warm-up: constant, or falling to zero."""
    warmup: Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Steps (an integer) or fraction of all steps in which the learning rate rises from zero."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay; never applied to biases, norms or prefixes."""
    optimizer: AnyOptimizer = AdamW()
    """Optimiser and its settings; or a name alone: adamw, sgd, adamw_8bit, paged_adamw, paged_adamw_8bit."""
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Maximum gradient norm; null disables clipping."""
    optimizer_in_backward: bool = False
    """Update each weight as soon as its gradient is complete, and free the gradient: for full fine-tuning without
    clipping, with one micro-batch a step and one process."""
    gradient_checkpointing: Checkpointing = AUTO
    """Layers whose activations are recomputed in the backward pass, which saves memory and costs time: all (true), so
    many, as few as the plan says will fit (auto), or all with their inputs in the host's memory (offload, CUDA)."""
    fit: bool = False
    """If the plan says that a micro-batch does not fit, use smaller and more micro-batches for the same step."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of computation: auto follows `model.dtype`, else bfloat16 on CUDA, float32 on the CPU."""
    average: Average = Average()
    """Mean of the trained weights that is kept in place of the last ones."""
    frozen_dropout: Literal["keep", "off"] = "keep"
    """Whether the base model's own dropout is active during training, as in the papers."""
    speed: Speed = Speed()
    """Speed-ups: `auto` uses one where it can be used and pays, `on` wherever it can be, and is refused elsewhere."""


class Generation(Section):
    max_new_tokens: PositiveInt = 64
    """Maximum length of an answer in tokens."""
    beams: PositiveInt = 1
    """Number of beams; 1 disables beam search."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature; 0 takes the most likely token."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Probability mass of nucleus sampling."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts that end an answer, beside the end markers that were supervised and the model's own."""
    rows: PositiveInt = 64
    """Evaluation prompts for which answers are generated, for the metrics of generated text."""
    examples: Annotated[int, Field(ge=0)] = 2
    """Generated examples to keep in the result."""


class Texts(Section):
    normalise: tuple[Normalisation, ...] = ()
    """What `exact_match`, `token_f1` and error rates ignore: case, punctuation, English articles, how numbers are
    written."""
    extract: str | None = Field(None, min_length=1)
    """Regular expression for what `exact_match`, `token_f1` and error rates compare: its first group, or all that it
    matches."""
    bleu_tokenizer: Literal["auto", "13a", "intl", "zh", "ja-mecab", "ko-mecab", "char", "none"] = "auto"
    """Tokenizer of sacreBLEU; auto chooses it for the script of the references."""


class Evaluation(Section):
    every: PositiveInt | None = None
    """Steps between evaluations; one before and one after training are always made."""
    metrics: tuple[Annotated[str, OneOf(lambda: METRICS, RENAMED)], ...] = ("loss",)
    """Metrics of the evaluation rows. Where a recipe names none, the task's own comes beside the loss: accuracy,
    span_f1, rmse or label_f1_micro."""
    best: Annotated[str, OneOf(lambda: METRICS, RENAMED)] = "loss"
    """Metric of the best step, for `patience` and `run.keep`; one of `metrics`."""
    patience: PositiveInt | None = None
    """Evaluations in a row without a better value of `best`, after which training ends."""
    threshold: float = Field(default=LIKELY, gt=0, lt=1)
    """Probability above which a label is predicted, where a text may have several labels."""
    batch_size: PositiveInt | None = None
    """Rows of one evaluation batch (default: `training.batch_size`)."""
    latency: bool = False
    """After training, time a forward pass of the result, of the base model, and of the two merged."""
    generation: Generation = Generation()
    """Generation of text."""
    texts: Texts = Texts()
    """How generated texts are compared with the references."""


class Run(Section):
    output: str | None = None
    """Run directory (default: `runs/NAME`, with NAME from the recipe file's folder and name)."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of initialisation, data order and dropout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device: auto is CUDA if available, else the CPU."""
    deterministic: bool = False
    """Use deterministic algorithms only: on CUDA, a run that resumes is exact only with them. Slower."""
    plan: Literal["refuse", "report", "off"] = "refuse"
    """Memory plan before loading: refuse to start a run that will not fit, only report it, or make no plan."""
    memory: Annotated[str | None, BeforeValidator(read_size)] = Field(default=None, min_length=1)
    """Memory that the plan assumes: `24GiB`, or the name of a GPU (default: what is free)."""
    memory_snapshot: bool = False
    """Write the allocations of training to `memory_snapshot.pickle`, for pytorch.org/memory_viz (CUDA; slower)."""
    save_every: PositiveInt | None = None
    """Steps between checkpoints, from which `train --resume` resumes; trained weights are always saved."""
    keep_checkpoints: PositiveInt = 2
    """Number of latest checkpoints to keep; the best by `evaluation.best` is kept too."""
    keep: Literal["last", "best", "both"] = "last"
    """Weights of the run: the last step's, the best evaluated step's, or the best with the last step's in `last`."""
    max_seconds: Annotated[float, Field(gt=0)] | None = None
    """Time limit in seconds, within which the run saves a checkpoint and ends."""
    stop_after: PositiveInt | None = None
    """Step after which the run saves a checkpoint and ends, as at a time limit."""
    log_every: PositiveInt = 10
    """Steps between lines in `metrics.jsonl`."""
    trackers: tuple[str, ...] = ()
    """Experiment trackers, by accelerate's names: tensorboard, wandb, mlflow, ..."""


def list_given(section: Any) -> dict[str, Any] | None:
    """Return what a section sets; None for anything else."""
    if isinstance(section, BaseModel):
        return {name: getattr(section, name) for name in section.model_fields_set}
    return section if isinstance(section, dict) else None


class Recipe(Section):
    """One run: a model, a method, data, training, evaluation."""

    model: Model
    """The base model."""
    method: AnyMethod
    """The fine-tuning method."""
    data: Data
    """Training and evaluation data."""
    training: Training
    """Training settings."""
    evaluation: Evaluation = Evaluation()
    """Evaluation settings."""
    run: Run = Run()
    """Run directory, seed, checkpoints and logging."""

    @model_validator(mode="before")
    @classmethod
    def measure_task(cls, values: Any) -> Any:
        """Return the values with the task's usual metrics where they name none."""
        sections = values if isinstance(values, dict) else {}
        model, evaluation = (list_given(sections.get(name, {})) for name in ("model", "evaluation"))
        if model is None or evaluation is None or "metrics" in evaluation:
            return values
        task = next((one for name, one in TASKS.items() if name == model.get("task", DEFAULT_TASK)), None)
        return {**sections, "evaluation": {**evaluation, "metrics": task.usual_metrics}} if task else values

    @property
    def data_seed(self) -> int:
        """The seed by which rows are held out and drawn."""
        return self.run.seed if self.data.seed is None else self.data.seed

    @property
    def needs_whole_base(self) -> bool:
        """Whether what is added to the base begins with values of its weights, so that these must be whole then."""
        return self.method.reads_base or bool(self.model.add_tokens)

    @property
    def task(self) -> Task:
        """The task that `model.task` names."""
        return TASKS[self.model.task]
