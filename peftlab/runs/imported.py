"""Trained weights of PEFT, transformers' Trainer, TRL, axolotl or LLaMA-Factory as a run of their own.

The run has the weights in peftlab's form, a recipe, counts, and digests. Before it is kept, what it computes is
compared with what the other library computes of the folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peftlab.data.dataset import Examples, load_examples, tokenise
from peftlab.data.parts import describe_sources
from peftlab.data.splits import check_labels
from peftlab.errors import StorageError, UsageError
from peftlab.models.load import LoadedModel, load_saved_tokenizer
from peftlab.recipe.schema import Recipe
from peftlab.reports import Progress, RunResult
from peftlab.runs.bench import Bench, check_rows, load_bench, with_format
from peftlab.runs.directory import open_directory
from peftlab.runs.display import open_display
from peftlab.runs.evaluation import Measuring, evaluate_parts
from peftlab.runs.foreign import (
    Foreign,
    adapt_method,
    build_foreign,
    fill_foreign,
    find_labels,
    fresh_of,
    read_foreign,
)
from peftlab.runs.launch import launched
from peftlab.runs.loading import apply_method, load_base, read_shape
from peftlab.runs.record import RunDisplay, RunRecord
from peftlab.runs.reopen import save_held_out
from peftlab.runs.run import run_path
from peftlab.runs.save import draw_curve, write_folder
from peftlab.tasks.formats import CHAT
from peftlab.training.recorder import Recorder
from peftlab.training.trackers import Trackers
from peftlab.world.base import World
from peftlab.world.open import open_world
from peftlab.world.quiet import quiet_libraries

# Both libraries compute the same in float32, in another order at most.
TOLERANCE = 1e-4
PROBE = (4, 16)


def import_run(
    folder: Path,
    recipe: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    labels: Sequence[str] | None = None,
    overwrite: bool = False,
    display: RunDisplay | None = None,
) -> tuple[Path, RunResult]:
    """Make a run of a folder of trained weights; return its directory and its result.

    `recipe` (a recipe, or a configuration that `convert` reads) has the data and the settings that the folder does
    not contain. `labels` are the classes in the order of a head's outputs. Where the recipe names data, the base and
    the imported model are evaluated. Raises MethodError for weights without a counterpart, by the key.
    """
    quiet_libraries()
    foreign = read_foreign(folder, recipe, overrides)
    path = run_path(foreign.recipe, foreign.name)
    world = open_world(foreign.recipe.run.device)
    if world.processes > 1:
        raise UsageError("import runs in one process; start it without a launcher")
    classes = find_labels(foreign, labels)
    adapted = adapt_method(foreign, read_shape(foreign.recipe, classes))
    with launched(world), open_directory(path, world.is_main, overwrite, resume=False) as directory:
        record = RunRecord(adapted, foreign.name, world, directory, display or open_display(world.is_main))
        try:
            _import(record, foreign, classes)
        except BaseException:
            directory.clear()
            raise
        finally:
            record.display.close()
    return path, record.result


def _import(record: RunRecord, foreign: Foreign, labels: list[str] | None) -> None:
    recorder = _open_recorder(record, foreign)
    with record.in_phase("load"):
        tokenizer = load_saved_tokenizer(foreign.folder, record.recipe.model)
        bench = _open_bench(record.recipe, record.world, tokenizer, labels) if foreign.has_data else None
        base = bench.base if bench else load_base(record.recipe, record.world.device, labels)
    _describe(record, foreign, bench, tokenizer)
    if bench:
        with record.in_phase("evaluation_before"):
            evaluate_parts(record, recorder, bench, Measuring(bench, base.model), "before", 0)
    with record.in_phase("apply"):
        model = _apply(record, foreign, base, labels)
    with record.in_phase("save"):
        write_folder(record, model, record.directory.weights, base.source, labels, tokenizer)
        record.directory.forget_former()
        record.result.saved_step = record.result.progress.step
    if bench:
        with record.in_phase("evaluation_after"):
            evaluate_parts(record, recorder, bench, Measuring(bench, model), "after", record.kept_step)
    draw_curve(record, recorder)
    record.finish()


def _open_recorder(record: RunRecord, foreign: Foreign) -> Recorder:
    """Return the run's recorder, with the other trainer's losses as its history."""
    trackers = Trackers(record.world, (), record.name, record.directory.trackers, record.note)
    recorder = Recorder(record.world, record.directory.metrics, record.display, trackers, record.meter.current)
    recorder.history = list(foreign.state.lines) if foreign.state else []
    recorder.write_history()
    return recorder


def _open_bench(recipe: Recipe, world: World, tokenizer: Any, labels: list[str] | None) -> Bench:
    """Return the recipe's rows, tokenised as the folder's tokenizer does, and the base for the weights."""
    examples = load_examples(recipe.data, recipe.task, recipe.data_seed)
    if labels is not None:
        examples = _with_labels(examples, labels)
    recipe = with_format(recipe, examples.section.format)
    dataset = tokenise(examples, tokenizer, check_rows(recipe, examples))
    return load_bench(recipe, world, examples, dataset, tokenizer)


def _with_labels(examples: Examples, labels: list[str]) -> Examples:
    """Return examples whose classes have the order of the head. Raises DataError for a label that it does not have."""
    for part in ("train", "evaluation", "test"):
        source = describe_sources(getattr(examples.section, part))
        check_labels(getattr(examples, part), examples.task, labels, source)
    return replace(examples, labels=labels)


def _describe(record: RunRecord, foreign: Foreign, bench: Bench | None, tokenizer: Any) -> None:
    """Write where the weights are from, how far they were trained, and what is known of the rows."""
    record.result.environment["imported"] = str(foreign.folder.resolve())
    record.note(f"imported from {foreign.folder}")
    for line in foreign.notes:
        record.note(line)
    record.result.progress = Progress(step=foreign.state.steps if foreign.state else 0)
    if bench:
        record.continue_with(bench.recipe)
        record.result.data = bench.dataset.report
        save_held_out(record.directory, record.recipe, bench.held_out)
    else:
        record.continue_with(_with_layout(record.recipe, tokenizer))
        record.note(f"data.format: {record.recipe.data.format}, because no data is named; data.format=OTHER changes it")
        ends = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
        record.result.data = {"train": {"stop_ids": ends}}
    record.write_recipe()


def _with_layout(recipe: Recipe, tokenizer: Any) -> Recipe:
    """Return a recipe without data with the format of its prompts: a chat where the tokenizer has a template."""
    if recipe.data.format is not None:
        return recipe
    chats = recipe.task.takes(CHAT.name) and bool(tokenizer.chat_template)
    return with_format(recipe, CHAT.name if chats else recipe.task.formats[0].name)


def _apply(record: RunRecord, foreign: Foreign, base: LoadedModel, labels: list[str] | None) -> nn.Module:
    """Return the base with the folder's weights, which computes what the other library computes of them."""
    recipe, world = record.recipe, record.world
    fresh = base.fresh | fresh_of(foreign, base.model)
    plain = {name: one.detach() for name, one in base.model.named_parameters()}
    model, record.result.parameters = apply_method(recipe.method, base.model, recipe.task.name, fresh)
    for line in (*fill_foreign(foreign, recipe, model, plain), *record.result.parameters.notes):
        record.note(line)
    model = model.to(world.device)
    theirs = probe(build_foreign(foreign, load_base(recipe, world.device, labels).model), world)
    error = float((probe(model, world) - theirs).square().mean().sqrt() / theirs.square().mean().sqrt())
    if not error <= TOLERANCE:
        raise StorageError(
            f"{foreign.folder}: the imported model is not the one that its own library makes of the folder (its "
            f"outputs differ by {error:.2g} of their size); nothing was imported"
        )
    record.note(f"outputs differ from those of its own library by {error:.1g} of their size")
    return model


@torch.no_grad()
def probe(model: nn.Module, world: World) -> torch.Tensor:
    """Return a model's outputs (rows, ..., classes) in float32 for token ids that are the same in every call."""
    config: Any = model.config
    rows = torch.Generator().manual_seed(0)
    vocabulary = config.get_text_config().vocab_size
    ids = torch.randint(0, vocabulary, PROBE, generator=rows).to(world.device)
    model = model.to(world.device).eval()
    decoded = {"decoder_input_ids": ids} if config.is_encoder_decoder else {}
    found = model(input_ids=ids, attention_mask=torch.ones_like(ids), **decoded).logits.float()
    return found[:, -PROBE[1] :] if found.dim() == 3 else found
