"""The stages of one case, each with its oracle: transformers' and PEFT's own calls, and a run that never stopped."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers import GenerationConfig, PreTrainedModel

from peftlab.data.batches import collate
from peftlab.errors import PeftlabError, StoppedError, one_line
from peftlab.evaluation.generate import evaluation_mode, pad_prompts, takes_padding
from peftlab.family_traits import ANSWERS_ALONE
from peftlab.parameters.shape import find_decoder_start
from peftlab.parameters.trainable import find_base
from peftlab.recipe.schema import Recipe
from peftlab.reports import RunResult
from peftlab.runs.bench import Bench, check_batches, prepare
from peftlab.runs.directory import RunDirectory
from peftlab.runs.generation import generate_all
from peftlab.runs.loading import check_method, fill_trained, load_base, read_labels, read_shape
from peftlab.runs.requests import ask
from peftlab.runs.run import train
from peftlab.tasks import TASKS
from peftlab.world.open import open_world
from tests.gauntlet.cases import STOP, Case, Outcome, recipe_of, write_rows
from tests.gauntlet.small import VOCABULARY

LOSS_TOLERANCE = 5e-4
# LLM.int8() computes in 16 bits the input columns that are large in any row of a batch: measured up to 1e-3.
INT8_LOSS_TOLERANCE = 5e-3
# The same of a row's own later tokens: a copied token would change logits by about their size.
INT8_FORESIGHT = 5e-2
MERGED_TOLERANCE = 2e-3
SCORES_TOLERANCE = 2e-3
# Plans take seconds; the other methods' are made by the same trace.
PLANNED = ("lora", "prefix")
# Other formats of one method: what they are resumed with is the same.
TWINS = ("qlora-fp4", "qlora-int8")
SHOW_ERRORS = bool(os.environ.get("GAUNTLET_SHOW_ERRORS"))


class StageError(Exception):
    """A stage's oracle disagrees."""


class RefusedError(Exception):
    """A case is refused before loading, in one line."""


@dataclass
class Progress:
    """The stage that a case is in, and the lines that its user has read."""

    stage: str = "check"
    notes: list[str] = field(default_factory=list)


class Silent:
    """A display that shows nothing and keeps the notes."""

    def note(self, text: str) -> None:
        pass

    def update(self, line: dict[str, Any], steps: int) -> None:
        pass

    def close(self) -> None:
        pass


def run_case(case: Case, base: Path, folder: Path) -> Outcome:
    """Return the outcome of one case on the model saved in `base`; `folder` is empty and its own."""
    started, progress = time.perf_counter(), Progress()
    try:
        with mock.patch("peftlab.runs.save.draw_losses"):  # a picture of three steps takes a tenth of a case's time
            run_stages(case, base, folder, progress)
        outcome, reason, progress.stage = "works", "", ""
    except RefusedError as error:
        outcome, reason = "refused", str(error)
    except Exception as error:
        outcome, reason = "fails", one_line(f"{type(error).__name__}: {error}")
        if SHOW_ERRORS:
            traceback.print_exc()
    seconds = round(time.perf_counter() - started, 2)
    return Outcome(case.key, outcome, progress.stage, reason, tuple(progress.notes), seconds)


def run_stages(case: Case, base: Path, folder: Path, progress: Progress) -> None:
    """Run a case to its end. Raises RefusedError before loading, and any error of a stage."""
    task, rows = TASKS[case.task], write_rows(TASKS[case.task], folder)

    def recipe(name: str, **run: Any) -> Recipe:
        return Recipe.model_validate(recipe_of(case, base, rows, folder / name, **run))

    straight = recipe("straight", plan="report" if case.method in PLANNED else "off")
    refuse(straight)
    progress.stage = "train"
    result = train(straight, name="straight", display=Silent())
    progress.notes += check_notes(result)
    if case.method not in TWINS:
        progress.stage = "resume"
        resumed = stop_and_resume(recipe("resumed", stop_after=STOP, plan="off"), recipe("resumed", plan="off"))
        compare_runs(result, resumed, folder / "straight", folder / "resumed")
    progress.stage = "reload"
    model, bench = reload(straight, folder / "straight")
    compare_losses(model, bench, folder / "straight")
    if task.generates:
        progress.stage = "generate"
        refuse_foresight(model, bench)
        compare_scores(model, bench)
        compare_answers(model, bench, result, folder / "straight")
    if straight.method.mergeable:
        progress.stage = "merge"
        compare_merged(straight, bench, folder / "straight")


def refuse(recipe: Recipe) -> None:
    """Raise RefusedError with one line where a run would be refused before it loads weights."""
    try:
        shape = read_shape(recipe, read_labels(recipe))
        check_method(recipe.method, shape)
        check_batches(recipe, shape)
    except PeftlabError as error:
        if "\n" in str(error):
            raise StageError("refused in several lines") from error
        raise RefusedError(str(error)) from error


def check_notes(result: RunResult) -> list[str]:
    """Return the notes about plan and audit; raise StageError for a frozen tensor that changed."""
    if result.status != "finished":
        raise StageError(f"ended as {result.status}")
    if result.audit is None or result.audit.frozen_changed:
        raise StageError("the audit found frozen tensors changed")
    wanted = ("audit:", "Memory cannot", "The memory of generation", "method", "generation")
    return [note for note in result.notes if note.startswith(wanted)]


def stop_and_resume(first: Recipe, second: Recipe) -> RunResult:
    try:
        train(first, name="resumed", display=Silent())
    except StoppedError:
        return train(second, name="resumed", resume=True, display=Silent())
    raise StageError("did not stop")


def compare_runs(straight: RunResult, resumed: RunResult, one: Path, other: Path) -> None:
    """Raise StageError unless a resumed run has the weights and the metrics of one that never stopped."""
    if not all(report.exact for report in resumed.resumes):
        raise StageError(f"resumed not exactly: {resumed.resumes[-1].reasons}")
    for file in sorted((one / "weights").glob("*.safetensors")):
        mine, others = load_file(file), load_file(other / "weights" / file.name)
        unequal = [name for name in mine if not torch.equal(mine[name], others[name])]
        if unequal:
            raise StageError(f"{len(unequal)} tensors differ after resuming: {unequal[0]}")
    if straight.metrics != resumed.metrics or straight.examples != resumed.examples:
        raise StageError("metrics or examples differ after resuming")


def reload(recipe: Recipe, folder: Path) -> tuple[Any, Any]:
    """Return the trained model as the plain library loads it at its defaults, and the bench of its rows."""
    bench = prepare(recipe, open_world("cpu"))
    weights = folder / "weights"
    if recipe.method.stores == "all":
        model = _auto(recipe).from_pretrained(weights)
    elif (weights / "adapter_config.json").exists():
        from peft import PeftModel

        plain = bench.base.model if recipe.method.base_format != "plain" else _plain_base(recipe, bench)
        model = PeftModel.from_pretrained(plain, weights)
    else:
        model = fill_trained(recipe, bench.base, RunDirectory.open(folder).weights, bench.device)
    _forget_own_settings(model)
    return model.eval(), bench


def _forget_own_settings(model: Any) -> None:
    """Leave out what a type's own configuration asks of generation (FSMT: five beams): recipes say nothing of it."""
    for holder in {find_base(model)[1], model}:
        for name in ("num_beams", "forced_eos_token_id", "length_penalty", "early_stopping"):
            if getattr(holder, "generation_config", None):
                setattr(holder.generation_config, name, None)


def _plain_base(recipe: Recipe, bench: Bench) -> Any:
    """Return the base as a reader loads it: the head is fresh, so its size must be given."""
    sizes = {"num_labels": bench.base.model.config.num_labels} if recipe.task.has_labels else {}
    model = _auto(recipe).from_pretrained(recipe.model.name, ignore_mismatched_sizes=True, **sizes)
    model.config.get_text_config().pad_token_id = bench.dataset.pad_id
    return model


def _auto(recipe: Recipe) -> Any:
    import transformers

    return getattr(transformers, recipe.task.auto_class)


@torch.no_grad()
def compare_losses(model: nn.Module, bench: Any, folder: Path) -> None:
    """Raise StageError unless the reloaded model gives every held-out row, alone, the loss that the run wrote down."""
    written = json.loads((folder / "scores.json").read_text(encoding="utf-8"))["after"]["loss"]
    loss = bench.recipe.task.loss(model)
    tolerance = LOSS_TOLERANCE if bench.recipe.method.batches_prompts else INT8_LOSS_TOLERANCE
    with evaluation_mode(model):
        for number, row in enumerate(bench.dataset.evaluation):
            batch = collate([row], bench.dataset.pad_id)
            alone = float(loss.rows(model, batch, [row.supervised]).losses)
            if abs(alone - written[number]) > tolerance * max(1.0, abs(alone)):
                raise StageError(f"row {number} alone: loss {alone:.6f}, in the run's batch {written[number]:.6f}")


@torch.no_grad()
def refuse_foresight(model: nn.Module, bench: Any) -> None:
    """Raise StageError if a logit depends on a later token: then next tokens are not predicted but copied."""
    ids = torch.tensor([list(bench.dataset.evaluation[0].input_ids)])
    others = ids.clone()
    others[:, -1] = (others[:, -1] + 7) % VOCABULARY
    one, other = (forward(model, bench, i).logits[:, :-1] for i in (ids, others))
    tolerance = 1e-4 if bench.recipe.method.batches_prompts else INT8_FORESIGHT
    if not torch.allclose(one, other, atol=tolerance * float(one.abs().max()), rtol=0):
        raise StageError("logits depend on later tokens")


def forward(model: nn.Module, bench: Any, ids: torch.Tensor) -> Any:
    """Return the output for tokens that are to be continued: a decoder's, where an encoder reads something else."""
    if not bench.recipe.task.encodes_prompt:
        return model(input_ids=ids, attention_mask=torch.ones_like(ids))
    prompt = torch.tensor([list(bench.dataset.evaluation[-1].input_ids)])
    return model(input_ids=prompt, attention_mask=torch.ones_like(prompt), decoder_input_ids=ids, use_cache=False)


@torch.no_grad()
def compare_scores(model: Any, bench: Any) -> None:
    """Raise StageError unless the scores of each next token in a padded batch are those of the prompt alone."""
    method = bench.recipe.method
    padded = bench.recipe.task.encodes_prompt or method.pads_prompts and takes_padding(model)
    padded = padded and method.batches_prompts
    prompts = [list(prompt.input_ids) for prompt in bench.dataset.prompts]
    if not padded or bench.base.model.config.model_type in ANSWERS_ALONE:
        return
    together = scores_of(model, bench, prompts)
    for number, prompt in enumerate(prompts):
        alone = scores_of(model, bench, [prompt])
        for step in range(min(len(alone), len(together))):
            one, other = alone[step][0], together[step][number]
            finite = one.isfinite() & other.isfinite()
            gap = float((one - other)[finite].abs().max())
            if gap > SCORES_TOLERANCE * max(1.0, float(one[finite].abs().max())):
                raise StageError(f"prompt {number}, token {step}: scores differ by {gap:.2g} in a batch")
            if one.argmax() != other.argmax():
                break


def scores_of(model: Any, bench: Any, prompts: list[list[int]]) -> tuple[torch.Tensor, ...]:
    ids, mask = pad_prompts(model, prompts, bench.dataset.pad_id)
    config = generation_settings(bench, output_logits=True, return_dict_in_generate=True)
    with evaluation_mode(model):
        return model.generate(input_ids=ids, attention_mask=mask, generation_config=config).logits


def generation_settings(bench: Any, **more: Any) -> GenerationConfig:
    """Return the settings of a reader who knows the run's tokenizer and nothing else of it."""
    start = find_decoder_start(bench.base.model.config) if bench.recipe.task.encodes_prompt else None
    return GenerationConfig(
        max_new_tokens=bench.recipe.evaluation.generation.max_new_tokens,
        do_sample=False,
        eos_token_id=bench.tokenizer.eos_token_id,
        pad_token_id=bench.dataset.pad_id,
        decoder_start_token_id=start,
        **more,
    )


def compare_answers(model: Any, bench: Any, result: RunResult, folder: Path) -> None:
    """Raise StageError unless an answer in a batch is the answer alone, and that of plain `generate`."""
    examples = list(zip(result.examples, bench.dataset.prompts, strict=False))
    answers = generate_all(
        folder,
        lambda recipe: [ask(recipe, prompt.text) for _, prompt in examples],
        ["evaluation.batch_size=1"],
    )
    for (example, prompt), alone in zip(examples, (answer.text for answer in answers), strict=True):
        if alone != example["after"]:
            raise StageError(f"alone it writes {one_line(alone, 40)!r}, with others {one_line(example['after'], 40)!r}")
        plain = plain_answer(model, bench, prompt.input_ids)
        if plain != alone:
            raise StageError(f"plain generate writes {one_line(plain, 40)!r}, peftlab {one_line(alone, 40)!r}")


@torch.no_grad()
def plain_answer(model: Any, bench: Any, ids: list[int]) -> str:
    inputs = torch.tensor([list(ids)])
    config = generation_settings(bench)
    with evaluation_mode(model):
        written = model.generate(input_ids=inputs, attention_mask=torch.ones_like(inputs), generation_config=config)
    begun = 1 if bench.recipe.task.encodes_prompt else len(ids)
    return bench.tokenizer.decode(written[0, begun:], skip_special_tokens=True).strip()


@torch.no_grad()
def compare_merged(recipe: Recipe, bench: Any, folder: Path) -> None:
    """Raise StageError unless the merged model is a plain one with the logits of the trained one.

    LLM.int8() also rounds what a layer reads, which a merged model does not: the trained one is compared without that.
    """
    labels = bench.dataset.labels
    trained = fill_trained(recipe, load_base(recipe, bench.device, labels), folder / "weights", bench.device).eval()
    merged: Any = recipe.method.merge(trained)
    if not isinstance(merged, PreTrainedModel):
        raise StageError("the merged model is not a plain one")
    scores = recipe.task.loss(trained).scores, recipe.task.loss(merged.eval()).scores
    batch = collate(bench.dataset.evaluation[:1], bench.dataset.pad_id)
    with inputs_as_they_are():
        one = scores[0](trained, batch)
    other = scores[1](merged, batch)
    if not torch.allclose(one, other, atol=MERGED_TOLERANCE * float(one.abs().max()), rtol=0):
        raise StageError(f"merged logits differ by {float((one - other).abs().max()):.2g}")


@contextmanager
def inputs_as_they_are() -> Iterator[None]:
    """Let int8 layers compute with the weights that their bytes stand for, on inputs that are not rounded."""
    from peft.utils.integrations import dequantize_module_weight

    from peftlab.models.quantized_layers import EightBitLinear

    def forward(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, dequantize_module_weight(self).to(x.dtype), self.bias)

    with mock.patch.object(EightBitLinear, "forward", forward):
        yield
