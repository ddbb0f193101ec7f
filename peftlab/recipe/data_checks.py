"""Settings of a recipe's data that contradict one another."""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping

from peftlab.errors import nearest
from peftlab.recipe.check import Check, Found, checks_into
from peftlab.recipe.schema import Data, Recipe, list_sources
from peftlab.tasks import possible_formats, tasks_taking
from peftlab.tasks.formats import CHAT

DATA_CHECKS: list[Check] = []
reads = checks_into(DATA_CHECKS)


@reads("model.task", "data.format")
def format_suits_task(recipe: Recipe) -> Found:
    task, layout = recipe.task, recipe.data.format
    if layout is not None and not task.takes(layout):
        taken, owners = (" or ".join(names) for names in ((f.name for f in task.formats), tasks_taking(layout)))
        yield "data.format", f"format {layout} needs model.task: {owners}; task {task.name} needs format {taken}"


@reads(
    "model.task", "data.format", "data.supervise", "data.thinking", "data.template_kwargs", "data.date", "data.tools"
)
def settings_of_chats(recipe: Recipe) -> Found:
    if CHAT in possible_formats(recipe.task, recipe.data.format):
        return
    for field in ("supervise", "thinking", "template_kwargs", "date", "tools"):
        if getattr(recipe.data, field) != Data.model_fields[field].get_default(call_default_factory=True):
            yield f"data.{field}", f"is for format chat only, not {name_formats(recipe)}; remove it"


@reads("model.task", "data.format", "data.long", "data.overlap", "data.max_length")
def long_rows_of_the_format(recipe: Recipe) -> Found:
    data = recipe.data
    documents = any(one.documents for one in possible_formats(recipe.task, data.format))
    if data.long == "chunk" and not documents:
        yield "data.long", f"chunk cuts running text into rows; for format {name_formats(recipe)} use cut or skip"
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


@reads("model.task", "data.format", "data.columns", "data.train", "data.evaluation", "data.test")
def columns_have_known_roles(recipe: Recipe) -> Found:
    formats = possible_formats(recipe.task, recipe.data.format)
    roles = list(dict.fromkeys(role for one in formats for role in one.roles))
    for path, columns in _columns_by_path(recipe.data):
        for role in columns:
            if role not in roles:
                known = nearest(role, roles) or f"; it has {', '.join(roles)}"
                yield f"{path}.{role}", f"format {name_formats(recipe)} has no such column{known}"
        if set(columns) <= set(roles) and not any(set(columns) <= set(one.roles) for one in formats):
            yield path, f"no format has all of {', '.join(columns)}; set data.format"


def _columns_by_path(data: Data) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Yield the columns that a recipe sets for all sources, and for one of several."""
    yield "data.columns", data.columns
    for part in ("train", "evaluation", "test"):
        for number, source in enumerate(list_sources(getattr(data, part))):
            if source.columns is not None:
                yield f"data.{part}.{number}.columns", source.columns


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


def name_formats(recipe: Recipe) -> str:
    """Return the formats that the rows may have, as a message names them."""
    return " or ".join(one.name for one in possible_formats(recipe.task, recipe.data.format))


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
