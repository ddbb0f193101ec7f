"""The longest rows and prompts of a run, which its plan and its preflight use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from peftlab.data.batches import RowGroup
from peftlab.data.dataset import Dataset
from peftlab.data.rows import longest_rows
from peftlab.data.token_rows import TokenRow
from peftlab.evaluation.generate import prompt_limit, takes_padding
from peftlab.memory.blueprint import count_answers
from peftlab.memory.generation import Answers
from peftlab.memory.trace import Workload
from peftlab.recipe.schema import Recipe
from peftlab.runs.bench import Bench
from peftlab.training.preflight import HeldOut

MOST_REPEATS = 10


def longest_work(work: Workload, dataset: Dataset) -> Workload:
    """Return `work` with the lengths of the longest rows in the data."""
    rows = longest_mix(dataset.longest_train, work.rows, work.packed)  # of the micro-batch that needs most
    held_out = longest_mix(dataset.all_held_out, work.evaluation_rows) if dataset.all_held_out else rows
    return replace(
        work,
        length=max(len(row.input_ids) for row in rows),
        answer_length=max(row.answer for row in rows),
        groups=groups_of(rows, work.rows) if work.packed else (),
        supervised=packed_share(rows) if work.packed else supervised_share(rows),
        evaluation_rows=work.evaluation_rows if dataset.all_held_out else 0,
        evaluation_length=max(len(row.input_ids) for row in held_out),
        evaluation_answer_length=max(row.answer for row in held_out),
        evaluation_supervised=supervised_share(held_out),
        padded=work.padded and len({len(row.input_ids) for row in (held_out if work.packed else rows)}) > 1,
    )


def longest_mix(rows: Sequence[TokenRow], count: int, packed: bool = False) -> list[TokenRow]:
    """Return the `count` longest rows, or all rows once where each would be repeated more than `MOST_REPEATS` times.

    A mistyped batch size must not build a list of its length, and the share of targets is the same.
    """
    count = count if count <= MOST_REPEATS * len(rows) else len(rows)
    return longest_rows(rows, count, padded=0 if packed else count)


def groups_of(rows: Sequence[TokenRow], count: int) -> tuple[RowGroup, ...]:
    """Return `count` rows laid end to end, which repeat `rows` where there are fewer, in groups of one length."""
    times, more = divmod(count, len(rows))
    found = Counter[int]()
    for number, row in enumerate(rows):
        found[len(row.input_ids)] += times + (number < more)
    return tuple(RowGroup(length, found[length]) for length in sorted(found) if found[length])


def packed_share(rows: Sequence[TokenRow]) -> float:
    """Return the fraction of a packed batch's predictable tokens that are targets."""
    return sum(row.supervised for row in rows) / max(sum(len(row.input_ids) for row in rows) - 1, 1)


def supervised_share(rows: Sequence[TokenRow]) -> float:
    """Return the fraction of a padded batch's predictable tokens that are targets."""
    return sum(row.supervised for row in rows) / rows[0].count_places(rows)


def held_out(bench: Bench, model: nn.Module) -> HeldOut:
    """Return the largest batches of an evaluation."""
    prompts = longest_prompts(bench.recipe, bench.dataset, model)
    return HeldOut(
        bench.dataset.all_held_out, bench.batch_size, bench.dataset.pad_id, prompts, answers_to(prompts, bench.recipe)
    )


def longest_prompts(recipe: Recipe, dataset: Dataset, model: nn.Module) -> list[list[int]]:
    """Return the longest batch of prompts that the run writes answers to, as `model` gets them; empty if none."""
    count = count_answers(recipe)
    prompts = [*dataset.prompts[:count], *dataset.test_prompts[:count]]
    if not prompts:
        return []
    limit = prompt_limit(model, recipe.evaluation.generation, recipe.method.prompting)
    batch = (recipe.evaluation.batch_size or recipe.training.batch_size) if recipe.method.batches_prompts else 1
    chosen = sorted((prompt.input_ids[-limit:] for prompt in prompts), key=len, reverse=True)[:batch]
    return (
        chosen
        if recipe.method.pads_prompts and takes_padding(model)
        else [one for one in chosen if len(one) == len(chosen[0])]
    )


def note_cut_prompts(recipe: Recipe, dataset: Dataset, model: nn.Module) -> list[str]:
    """Return a line where prompts that the run answers are too long for the model's positions, and so are cut."""
    count = count_answers(recipe)
    prompts = [*dataset.prompts[:count], *dataset.test_prompts[:count]]
    if not prompts:
        return []
    limit = prompt_limit(model, recipe.evaluation.generation, recipe.method.prompting)
    cut = sum(len(prompt.input_ids) > limit for prompt in prompts)
    found = f"{cut} of {len(prompts)} prompts leave too few positions for max_new_tokens"
    remedy = "cut at generation, after their opening token and system text"
    return [f"evaluation.generation: {found}: {remedy}"] if cut else []


def answers_to(prompts: Sequence[Sequence[int]], recipe: Recipe) -> Answers | None:
    """Return the answers that a run writes to its longest prompts; None without any."""
    settings = recipe.evaluation.generation
    return Answers(len(prompts), len(prompts[0]), settings.max_new_tokens, settings.beams) if prompts else None
