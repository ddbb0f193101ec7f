"""Contradictions between fields: each is told, at the line of one of them, and its remedy is accepted."""

from __future__ import annotations

import pytest

from peftlab.recipe import Recipe, parse_recipe
from peftlab.recipe.checks import CHECKS
from peftlab.recipe.schema import Evaluation

from .texts import VALID, only_problem, problems_of

CLASSIFY = ("model.task=sequence-classification", "data.format=classification")
MIXED = "data.train=[{source: a.csv, weight: 1}, {source: b.csv, weight: 2}]"
STREAM, EPOCHS = ["data.streaming=true"], ["training.steps=null", "training.epochs=1"]
CASES = [
    # (overrides that contradict, key path, words of the message, override that mends it)
    (["training.epochs=1"], "training.epochs", "set steps or epochs, not both", "training.steps=null"),
    (["training.steps=null"], "training", "set steps or epochs", "training.epochs=1"),
    (
        ["training.warmup=11"],
        "training.warmup",
        "11 steps of warm-up do not fit into 10",
        "training.steps=11",
    ),
    (
        ["training.gradient_checkpointing=offload", "run.device=cpu"],
        "training.gradient_checkpointing",
        "offload needs CUDA",
        "training.gradient_checkpointing=true",
    ),
    (
        ["method={type: prefix}", "training.gradient_checkpointing=true"],
        "training.gradient_checkpointing",
        "does not work with prefix tuning",
        "method={type: lora}",
    ),
    (
        ["method={type: adapters, bottleneck: 8, reduction_factor: 4}"],
        "method",
        "give bottleneck or reduction_factor, not both",
        "method={type: adapters, bottleneck: 8}",
    ),
    (
        ["method={type: prefix, projection_dim: 8}"],
        "method.projection_dim",
        "has no effect without `projection: true`",
        "method.projection=true",
    ),
    (
        ["method={type: prefix, kind: prompt, projection: true}"],
        "method.projection",
        "kind: prefix only",
        "method.kind=prefix",
    ),
    (
        ["method={type: qlora, init: pissa}"],
        "method.init",
        "plain weights",
        "method={type: lora, init: pissa}",
    ),
    (["method={type: lora, rank: 3, init: orthogonal}"], "method.init", "needs an even rank, not 3", "method.rank=4"),
    (["method={type: adapters, modules: ['']}"], "method.modules", "an empty pattern", "method.modules=[]"),
    (["method={type: qlora, init: orthogonal}"], "method.init", "plain weights", "method.init=gaussian"),
    (
        ["method={type: qlora, quantization: int8, compute_dtype: float32}"],
        "method.compute_dtype",
        "leave it auto",
        "method.compute_dtype=auto",
    ),
    (["run.memory_snapshot=true", "run.device=cpu"], "run.memory_snapshot", "set it to false", "run.device=auto"),
    (["run.memory=plenty"], "run.memory", "neither a size such as 24GiB nor a known GPU", "run.memory=24GiB"),
    (["run.memory=24"], "run.memory", "has no unit", "run.memory=24GiB"),
    (["training.fit=true", "run.plan=off"], "training.fit", "splits by the memory plan", "run.plan=refuse"),
    (
        ["training.optimizer_in_backward=true", "training.clip=1"],
        "training.optimizer_in_backward",
        "no norm can be clipped",
        "training.clip=null",
    ),
    (
        ["training.optimizer_in_backward=true", "training.clip=null", "training.average.ema=0.9"],
        "training.optimizer_in_backward",
        "one update a step",
        "training.average.ema=null",
    ),
    (["method.targets=[]"], "method.targets", "adapts nothing", "method.targets=[q_proj]"),
    (["method.targets=['']"], "method.targets", "an empty pattern", "method.targets=[q_proj]"),
    (
        ["method.freeze=[a]", "method.unfreeze=[a]"],
        "method.freeze",
        "'a' is also in unfreeze",
        "method.unfreeze=[]",
    ),
    (
        ["training.precision=float32", "model.dtype=bfloat16"],
        "training.precision",
        "does not work with bfloat16 weights",
        "model.dtype=float32",
    ),
    (
        ["training.optimizer=adamw_8bit", "run.device=cpu"],
        "training.optimizer",
        "needs CUDA",
        "run.device=cuda",
    ),
    (
        ["model.attention=flash_attention_2", "run.device=cpu"],
        "model.attention",
        "needs CUDA",
        "run.device=auto",
    ),
    (["data.format=classification"], "data.format", "needs model.task", "model.task=sequence-classification"),
    (
        ["model.task=sequence-classification", "data.format=completion"],
        "data.format",
        "needs format classification",
        CLASSIFY[1],
    ),
    (
        ["evaluation.metrics=[loss, f1_macro]"],
        "evaluation.metrics",
        "f1_macro: only for task seq",
        "evaluation.metrics=[loss]",
    ),
    (
        [*CLASSIFY, "evaluation.metrics=[bleu, accuracy]"],
        "evaluation.metrics",
        "bleu: only for task causal-lm",
        "evaluation.metrics=[accuracy, matthews]",
    ),
    (
        ["data.format=text", "evaluation.metrics=[rouge]"],
        "evaluation.metrics",
        "format text has no answer",
        "data.format=completion",
    ),
    (
        ["evaluation.texts.extract='(#'"],
        "evaluation.texts.extract",
        "not a regular expression: missing )",
        "evaluation.texts.extract='#'",
    ),
    (["evaluation.metrics=[]"], "evaluation.metrics", "measures nothing", "evaluation.metrics=[loss]"),
    (
        ["evaluation.metrics=[loss, loss]"],
        "evaluation.metrics",
        "loss is named twice",
        "evaluation.metrics=[loss]",
    ),
    (["data.columns.promt=x"], "data.columns.promt", "did you mean 'prompt'?", "data.columns={prompt: x}"),
    (["data.columns.label=x"], "data.columns.label", "it has prompt, completion, text", "data.columns={}"),
    (["data.columns={text: a, prompt: b}"], "data.columns", "no format has all of text, prompt", "data.columns={}"),
    (["data.template=no column"], "data.template", "names no column", "data.template={x}"),
    (["data.template={x"], "data.template", "not a template", "data.template={x}"),
    (["data.template={}: {x}"], "data.template", "an empty {}", "data.template={x}"),
    (["data.template={x:>8}"], "data.template", "takes no ':' or '!'", "data.template={x}"),
    (
        ["data.max_target_length=9"],
        "data.max_target_length",
        "task causal-lm counts prompt and answer together in data.max_length",
        "data.max_target_length=null",
    ),
    (
        ["model.task=sequence-to-sequence", "data.truncate=middle"],
        "data.truncate",
        "cuts prompts at their end",
        "data.truncate=auto",
    ),
    (
        ["data.overlap=4", "data.format=completion"],
        "data.overlap",
        "is for chunks of running text only",
        "data.overlap=0",
    ),
    (
        ["data.format=text", "data.overlap=64", "data.max_length=64"],
        "data.overlap",
        "64 leaves nothing new in rows of 64 tokens",
        "data.overlap=8",
    ),
    (["model.add_tokens=[a, a]"], "model.add_tokens", "'a' is named twice", "model.add_tokens=[a, b]"),
    (["model.add_tokens=[' a']"], "model.add_tokens", "begins or ends with a blank", "model.add_tokens=[a]"),
    (
        ["data.supervise=last", "data.format=completion"],
        "data.supervise",
        "is for format chat only, not completion",
        "data.format=chat",
    ),
    (
        ["data.date=2026-01-31", "data.format=completion"],
        "data.date",
        "is for format chat only, not completion",
        "data.format=chat",
    ),
    (["data.date=tomorrow"], "data.date", "'tomorrow' is not a day; write it as 2026-01-31", "data.date=null"),
    (["data.template={x}", "data.format=chat"], "data.template", "own chat template", "data.template=null"),
    (
        ["data.template={x}", "data.columns.prompt=y", "data.format=completion"],
        "data.columns.prompt",
        "the template makes the prompt already",
        "data.template=null",
    ),
    (
        ["data.format=completion", "data.long=chunk"],
        "data.long",
        "for format completion use cut or skip",
        "data.long=cut",
    ),
    (
        ["data.train=[a.csv, {source: b.csv, weight: 2}]"],
        "data.train",
        "give all of them one, or none",
        "data.train=[{source: a.csv, weight: 1}, {source: b.csv, weight: 2}]",
    ),
    (["data.stopping_strategy=all_exhausted"], "data.stopping_strategy", "for sources with weights", MIXED),
    (
        ["data.evaluation=[{source: a.csv, weight: 2}]"],
        "data.evaluation.0.weight",
        "only training draws rows by weight",
        "data.evaluation=[{source: a.csv}]",
    ),
    (["data.evaluation=a.csv", *STREAM, *EPOCHS], "data.streaming", "needs training.steps", "data.streaming=false"),
    (["data.evaluation=9", *STREAM], "data.evaluation", "rows of a stream cannot be held out", "data.evaluation=a.csv"),
    (
        ["data.evaluation=a.csv", *STREAM, "data.train_rows=9"],
        "data.train_rows",
        "select them in data.train",
        "data.train_rows=null",
    ),
    (
        ["data.evaluation=a.csv", *STREAM, "data.group_by=prompt"],
        "data.group_by",
        "rows of a stream are not split",
        "data.group_by=null",
    ),
    (["data.shuffle_buffer=5"], "data.shuffle_buffer", "for streamed rows only", "data.shuffle_buffer=10000"),
    (
        ["data.evaluation=null", "evaluation.every=5"],
        "evaluation.every",
        "there are no evaluation rows",
        "data.evaluation=9",
    ),
    (
        ["data.evaluation=null", "evaluation.metrics=[bleu]"],
        "evaluation.metrics",
        "there are no evaluation rows",
        "data.evaluation=0.1",
    ),
    (
        ["data.test_rows=5"],
        "data.test_rows",
        "there are no test rows; set data.test",
        "data.test=10",
    ),
    (
        ["data.evaluation=null", "data.evaluation_rows=5"],
        "data.evaluation_rows",
        "there are no evaluation rows",
        "data.evaluation=10",
    ),
    (["run.keep=best"], "run.keep", "chooses among evaluations during training", "evaluation.every=5"),
    (["evaluation.patience=3"], "evaluation.patience", "set evaluation.every", "evaluation.every=5"),
    (
        ["evaluation.best=bleu"],
        "evaluation.best",
        "bleu is not one of evaluation.metrics",
        "evaluation.metrics=[loss, bleu]",
    ),
    (["training.average.last=2"], "training.average.last", "is a mean of checkpoints", "run.save_every=5"),
    (
        ["evaluation.generation.top_p=0.9"],
        "evaluation.generation.top_p",
        "has no effect while temperature is 0",
        "evaluation.generation.temperature=0.7",
    ),
]


@pytest.mark.parametrize(("overrides", "path", "words", "remedy"), CASES)
def test_a_contradiction_is_reported_and_its_remedy_accepted(overrides, path, words, remedy):
    (problem,) = problems_of(VALID, tuple(overrides))
    assert problem.path == path
    assert words in problem.message
    key = remedy.partition("=")[0]
    kept = [override for override in overrides if override.partition("=")[0] != key]
    if key == "data.columns":
        kept = [override for override in kept if not override.startswith("data.columns.")]
    assert problems_of(VALID, (*kept, remedy)) == []


def test_every_check_has_a_case():
    found = {
        check.find.__name__
        for check in CHECKS
        for overrides, path, words, _ in CASES
        if any(words in message for message in messages_of(check, overrides))
    }
    assert found == {check.find.__name__ for check in CHECKS}


def messages_of(check, overrides):
    from peftlab.recipe import load

    draft_values = load.parse_yaml(VALID, None).value
    load.apply_overrides(draft_values, overrides)
    try:
        recipe = load.Recipe.model_validate(draft_values, strict=True)
    except ValueError:
        return []
    return [message for _, message in check.find(recipe)]


def test_a_contradiction_in_a_file_names_its_line():
    line = only_problem(VALID + "  epochs: 2\n")
    assert line == "r.yaml:12: training.epochs: set steps or epochs, not both: set one of them to null"


def test_qlora_takes_a_gguf_file():
    assert problems_of(VALID, ("method.type=qlora", "model.name=package:some_package/model.gguf")) == []


@pytest.mark.parametrize(
    ("overrides", "metrics"),
    [
        ([], ("loss",)),
        (CLASSIFY, ("loss", "accuracy")),
        (["model.task=regression", "data.format=regression"], ("loss", "rmse")),
        (["model.task=token-classification", "data.format=tokens"], ("loss", "span_f1")),
        ([*CLASSIFY, "evaluation.batch_size=4"], ("loss", "accuracy")),
        ([*CLASSIFY, "evaluation.metrics=[loss]"], ("loss",)),
        ([*CLASSIFY, "data.evaluation=null"], ("loss", "accuracy")),
    ],
)
def test_a_recipe_without_metrics_measures_its_task(overrides, metrics):
    assert parse_recipe(VALID, overrides).evaluation.metrics == metrics


def test_a_recipe_made_in_python_measures_its_task_and_a_recorded_one_what_it_says():
    recipe = parse_recipe(VALID, CLASSIFY)
    sections = {name: getattr(recipe, name) for name in ("model", "method", "data", "training")}
    assert Recipe(**sections).evaluation.metrics == ("loss", "accuracy")
    assert Recipe(**sections, evaluation=Evaluation(every=2)).evaluation == Evaluation(
        every=2, metrics=("loss", "accuracy")
    )
    recorded = recipe.model_dump(mode="json") | {"evaluation": {"metrics": ["loss"]}}
    assert Recipe.model_validate(recorded).evaluation.metrics == ("loss",)
