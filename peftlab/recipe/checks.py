"""Settings that contradict one another: one small function for each, with the fields that it reads."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from peftlab.errors import UsageError, nearest
from peftlab.metrics import names_that_need
from peftlab.recipe.schema import Data, Recipe, list_sources
from peftlab.recipe.yaml_source import KeyPath
from peftlab.sizes import parse_budget
from peftlab.tasks import TASKS, possible_formats, tasks_taking
from peftlab.tasks.formats import CHAT

Found = Iterator[tuple[str, str]]


class Check(NamedTuple):
    reads: tuple[str, ...]
    find: Callable[[Recipe], Found]


CHECKS: list[Check] = []

GENERATION_METRICS = set(names_that_need("texts"))


def find_contradictions(recipe: Recipe, wrong: Sequence[KeyPath]) -> list[tuple[KeyPath, str]]:
    """Return (key path, message) of every contradiction between fields that are right by themselves."""
    return [
        (tuple(path.split(".")), message)
        for check in CHECKS
        if not any(overlaps(tuple(field.split(".")), path) for field in check.reads for path in wrong)
        for path, message in check.find(recipe)
    ]


def overlaps(field: KeyPath, wrong: KeyPath) -> bool:
    """Whether a field is wrong itself, contains something wrong, or is inside of it."""
    length = min(len(field), len(wrong))
    return field[:length] == wrong[:length]


def reads(*fields: str) -> Callable[[Callable[[Recipe], Found]], Callable[[Recipe], Found]]:
    """Enter a check into `CHECKS`; it is left out where one of its fields is wrong already."""

    def enter(find: Callable[[Recipe], Found]) -> Callable[[Recipe], Found]:
        CHECKS.append(Check(fields, find))
        return find

    return enter


@reads("method")
def settings_of_the_method(recipe: Recipe) -> Found:
    for field, message in recipe.method.check_settings():
        yield f"method.{field}", message


@reads("model.add_tokens")
def new_tokens_are_texts(recipe: Recipe) -> Found:
    tokens = recipe.model.add_tokens
    for token in dict.fromkeys(tokens):
        if token != token.strip() or not token:
            yield "model.add_tokens", f"{token!r} begins or ends with a blank, which tokenizers treat in their own way"
        if tokens.count(token) > 1:
            yield "model.add_tokens", f"{token!r} is named twice"


@reads("training.steps", "training.epochs")
def one_length_of_training(recipe: Recipe) -> Found:
    if recipe.training.steps is None and recipe.training.epochs is None:
        yield "training", "set steps or epochs"
    if recipe.training.steps is not None and recipe.training.epochs is not None:
        yield "training.epochs", "set steps or epochs, not both: set one of them to null"


@reads("training.warmup", "training.steps")
def warmup_within_steps(recipe: Recipe) -> Found:
    warmup, steps = recipe.training.warmup, recipe.training.steps
    if steps is not None and warmup > steps:
        yield "training.warmup", f"{warmup} steps of warm-up do not fit into {steps} steps of training"


@reads("training.gradient_checkpointing", "method")
def checkpointing_suits_the_method(recipe: Recipe) -> Found:
    if recipe.training.gradient_checkpointing and not recipe.method.supports_gradient_checkpointing:
        yield "training.gradient_checkpointing", f"does not work with {recipe.method.title}; set it to false"


@reads("training.precision", "model.dtype")
def precision_below_weights(recipe: Recipe) -> Found:
    if recipe.training.precision == "float32" and recipe.model.dtype in ("bfloat16", "float16"):
        fault = f"float32 computation does not work with {recipe.model.dtype} weights"
        yield "training.precision", f"{fault}; set model.dtype to float32 or precision to auto"


@reads("training.optimizer", "run.device")
def optimizer_needs_cuda(recipe: Recipe) -> Found:
    if recipe.training.optimizer.needs_cuda and recipe.run.device == "cpu":
        yield "training.optimizer", "8-bit and paged states: needs CUDA, and run.device is cpu; use adamw or sgd"


@reads(
    "model.task", "data.format", "data.supervise", "data.thinking", "data.template_kwargs", "data.date", "data.tools"
)
def settings_of_chats(recipe: Recipe) -> Found:
    if CHAT in possible_formats(recipe.task, recipe.data.format):
        return
    for field in ("supervise", "thinking", "template_kwargs", "date", "tools"):
        if getattr(recipe.data, field) != Data.model_fields[field].get_default(call_default_factory=True):
            yield f"data.{field}", f"is for format chat only, not {_format_names(recipe)}; remove it"


@reads("model.task", "data.format", "data.long", "data.overlap", "data.max_length")
def long_rows_of_the_format(recipe: Recipe) -> Found:
    data = recipe.data
    documents = any(one.documents for one in possible_formats(recipe.task, data.format))
    if data.long == "chunk" and not documents:
        yield "data.long", f"chunk cuts running text into rows; for format {_format_names(recipe)} use cut or skip"
    if data.overlap and not (documents and data.long in (None, "chunk")):
        yield "data.overlap", "is for chunks of running text only; remove it"
    elif data.overlap >= data.max_length:
        yield (
            "data.overlap",
            f"{data.overlap} leaves nothing new in rows of {data.max_length} tokens; use a smaller one",
        )


@reads("data.max_target_length", "data.truncate", "model.task")
def answers_of_their_own_length(recipe: Recipe) -> Found:
    if recipe.data.max_target_length is not None and not recipe.task.encodes_prompt:
        fault = f"task {recipe.task.name} counts prompt and answer together in data.max_length; remove it"
        yield "data.max_target_length", fault
    if recipe.data.truncate != "auto" and recipe.task.encodes_prompt:
        yield "data.truncate", f"task {recipe.task.name} cuts prompts at their end; remove it"


@reads("run.memory_snapshot", "run.device")
def snapshot_needs_cuda(recipe: Recipe) -> Found:
    if recipe.run.memory_snapshot and recipe.run.device == "cpu":
        yield "run.memory_snapshot", "records CUDA's allocator, and run.device is cpu; set it to false"


@reads("run.memory")
def memory_is_a_size(recipe: Recipe) -> Found:
    if recipe.run.memory is not None:
        try:
            parse_budget(recipe.run.memory)
        except UsageError as error:
            yield "run.memory", str(error)


@reads("training.fit", "run.plan")
def fit_needs_a_plan(recipe: Recipe) -> Found:
    if recipe.training.fit and recipe.run.plan == "off":
        yield "training.fit", "splits by the memory plan, and run.plan is off; set run.plan to refuse or report"


@reads("model.attention", "run.device")
def flash_attention_needs_cuda(recipe: Recipe) -> Found:
    if recipe.model.attention == "flash_attention_2" and recipe.run.device == "cpu":
        yield "model.attention", "flash_attention_2 needs CUDA, and run.device is cpu; use sdpa"


@reads("model.task", "data.format")
def format_suits_task(recipe: Recipe) -> Found:
    task, layout = recipe.task, recipe.data.format
    if layout is not None and not task.takes(layout):
        taken, owners = (" or ".join(names) for names in ((f.name for f in task.formats), tasks_taking(layout)))
        yield "data.format", f"format {layout} needs model.task: {owners}; task {task.name} needs format {taken}"


@reads("model.task", "data.format", "evaluation.metrics")
def metrics_suit_task(recipe: Recipe) -> Found:
    task, asked = recipe.task, list(dict.fromkeys(recipe.evaluation.metrics))
    known = names_that_need(*task.gives)
    misfits = [metric for metric in asked if metric not in known]
    if misfits:
        owners = [other.name for other in TASKS.values() if set(misfits) <= set(names_that_need(*other.gives))]
        needed = f"only for task {' or '.join(owners)}, " if owners else ""
        yield "evaluation.metrics", f"{', '.join(misfits)}: {needed}not {task.name}"
    generated = [metric for metric in asked if metric in GENERATION_METRICS & set(known)]
    suiting = [one for one in possible_formats(task, recipe.data.format) if one in task.formats]
    if generated and suiting and not any(one.prompts for one in suiting):
        fault = f"format {_format_names(recipe)} has no answer to compare with"
        yield "evaluation.metrics", f"{', '.join(generated)}: {fault}"


@reads("evaluation.metrics")
def metrics_named_once(recipe: Recipe) -> Found:
    metrics = recipe.evaluation.metrics
    if not metrics:
        yield "evaluation.metrics", "an empty list measures nothing; set at least loss"
    for metric in sorted({metric for metric in metrics if metrics.count(metric) > 1}):
        yield "evaluation.metrics", f"{metric} is named twice"


@reads("evaluation.texts", "evaluation.metrics")
def extraction_is_a_pattern(recipe: Recipe) -> Found:
    pattern = recipe.evaluation.texts.extract
    if pattern is None:
        return
    try:
        re.compile(pattern)
    except re.error as error:
        yield "evaluation.texts.extract", f"not a regular expression: {error}"


@reads("model.task", "data.format", "data.columns", "data.train", "data.evaluation", "data.test")
def columns_have_known_roles(recipe: Recipe) -> Found:
    formats = possible_formats(recipe.task, recipe.data.format)
    roles = list(dict.fromkeys(role for one in formats for role in one.roles))
    for path, columns in _columns_by_path(recipe.data):
        for role in columns:
            if role not in roles:
                known = nearest(role, roles) or f"; it has {', '.join(roles)}"
                yield f"{path}.{role}", f"format {_format_names(recipe)} has no such column{known}"
        if set(columns) <= set(roles) and not any(set(columns) <= set(one.roles) for one in formats):
            yield path, f"no format has all of {', '.join(columns)}; set data.format"


def _columns_by_path(data: Data) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Yield the columns that a recipe sets for all sources, and for one of several."""
    yield "data.columns", data.columns
    for part in ("train", "evaluation", "test"):
        for number, source in enumerate(list_sources(getattr(data, part))):
            if source.columns is not None:
                yield f"data.{part}.{number}.columns", source.columns


def _format_names(recipe: Recipe) -> str:
    return " or ".join(one.name for one in possible_formats(recipe.task, recipe.data.format))


@reads("data.template")
def template_names_columns(recipe: Recipe) -> Found:
    if recipe.data.template is None:
        return
    try:
        parts = [part[1:] for part in string.Formatter().parse(recipe.data.template) if part[1] is not None]
    except ValueError as error:
        yield "data.template", f"not a template: {error}; a brace itself is written twice, {{{{ or }}}}"
        return
    if not parts:
        yield (
            "data.template",
            "names no column, so all rows would be the same; write at least one {column}",
        )
    for name, layout, conversion in parts:
        if not name:
            yield "data.template", "an empty {}; name the column, as in {question}"
        elif layout or conversion:
            yield "data.template", f"{{{name}}} takes no ':' or '!' after the name"


@reads("model.task", "data.template", "data.format", "data.columns")
def template_suits_format(recipe: Recipe) -> Found:
    if recipe.data.template is None:
        return
    formats = possible_formats(recipe.task, recipe.data.format)
    able = [one for one in formats if one.template_role is not None]
    if not able:
        yield "data.template", formats[0].template_refusal
    elif all(one.template_role in recipe.data.columns for one in able):
        role = able[0].template_role
        yield f"data.columns.{role}", f"the template makes the {role} already; remove one of the two"


@reads("data.streaming", "data.shuffle_buffer", "training.steps", "data.evaluation", "data.test", "data.train_rows")
def streams_have_no_end(recipe: Recipe) -> Found:
    data = recipe.data
    if not data.streaming:
        if data.shuffle_buffer != Data.model_fields["shuffle_buffer"].default:
            yield "data.shuffle_buffer", "is for streamed rows only; set data.streaming to true, or remove it"
        return
    if recipe.training.steps is None:
        yield "data.streaming", "the number of streamed rows is not known, so training needs training.steps"
    for part in ("evaluation", "test"):
        if isinstance(getattr(data, part), int | float):
            fault = "rows of a stream cannot be held out"
            yield f"data.{part}", f"{fault}; name a source, and leave its rows out of data.train: FILE[train[1000:]]"
    if data.train_rows is not None:
        yield "data.train_rows", "rows of a stream cannot be drawn; select them in data.train: FILE[train[:1000]]"
    if data.group_by is not None:
        yield "data.group_by", "rows of a stream are not split; remove it"


@reads("data.train", "data.evaluation", "data.test", "data.stopping_strategy")
def weights_of_sources(recipe: Recipe) -> Found:
    weights = [source.weight for source in list_sources(recipe.data.train)]
    if None in weights and any(weight is not None for weight in weights):
        yield "data.train", "some sources have a weight and some have none; give all of them one, or none"
    if recipe.data.stopping_strategy != "first_exhausted" and not any(weights):
        yield "data.stopping_strategy", "is for sources with weights; give each source of data.train a weight"
    for part in ("evaluation", "test"):
        for number, source in enumerate(list_sources(getattr(recipe.data, part))):
            if source.weight is not None:
                yield f"data.{part}.{number}.weight", "only training draws rows by weight; remove it"


@reads("data.test", "data.test_rows", "data.general", "model.task")
def test_and_general_rows(recipe: Recipe) -> Found:
    if recipe.data.test_rows is not None and recipe.data.test is None:
        yield "data.test_rows", "there are no test rows; set data.test"
    if recipe.data.general is not None and not recipe.task.takes("text"):
        yield "data.general", f"only for task {tasks_taking('text')[0]}: {recipe.task.name} has no loss on running text"


@reads("data.evaluation", "data.evaluation_rows", "data.test", "evaluation.every", "evaluation.metrics")
def evaluation_has_rows(recipe: Recipe) -> Found:
    if recipe.data.evaluation is not None:
        return
    remedy = "there are no evaluation rows; set data.evaluation"
    if recipe.evaluation.every is not None:
        yield "evaluation.every", remedy
    if recipe.evaluation.metrics not in ((), ("loss",)) and recipe.data.test is None:
        yield "evaluation.metrics", remedy
    if recipe.data.evaluation_rows is not None:
        yield "data.evaluation_rows", remedy


@reads("evaluation.best", "evaluation.metrics", "evaluation.patience", "evaluation.every", "run.keep")
def best_step_is_evaluated(recipe: Recipe) -> Found:
    evaluation, keep = recipe.evaluation, recipe.run.keep
    wanted = [("evaluation.patience", evaluation.patience is not None), ("run.keep", keep != "last")]
    asked = [key for key, is_set in wanted if is_set]
    for key in asked:
        if evaluation.every is None:
            yield key, "chooses among evaluations during training; set evaluation.every"
    if evaluation.best not in evaluation.metrics and (asked or evaluation.best != "loss"):
        yield "evaluation.best", f"{evaluation.best} is not one of evaluation.metrics; add it there"


@reads("evaluation.generation.temperature", "evaluation.generation.top_p")
def nucleus_needs_temperature(recipe: Recipe) -> Found:
    generation = recipe.evaluation.generation
    if generation.top_p < 1 and generation.temperature == 0:
        yield (
            "evaluation.generation.top_p",
            "has no effect while temperature is 0, which takes the likeliest token",
        )
