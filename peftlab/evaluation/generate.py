"""Generated text: batches of prompts to answers, for every kind of causal model that peftlab trains."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from peftlab.data.dataset import Dataset
from peftlab.data.prompts import Prompt
from peftlab.errors import UsageError
from peftlab.evaluation.likelihood import TokenLikelihoods
from peftlab.evaluation.own_settings import without_own_settings
from peftlab.evaluation.stop_texts import StopTexts
from peftlab.evaluation.streaming import PieceStreamer
from peftlab.family_traits import ANSWERS_ALONE, MIXES_ROWS, POSITIONS_BY_MASK, READS_PADDING
from peftlab.methods import Prompting
from peftlab.models.tokenizer import find_pad_id
from peftlab.parameters.shape import count_positions, find_decoder_start
from peftlab.parameters.trainable import find_base
from peftlab.recipe.schema import Evaluation, Generation
from peftlab.tasks import task_of

PLAIN = Prompting()


class Answer(NamedTuple):
    """A generated text, and whether it ended by itself: at an end marker or a stop text, not at its greatest length.

    `cut` is the number of the prompt's tokens for which the model had no positions, `log_probability` the natural
    logarithm of the model's probability of what it wrote, where that was asked for.
    """

    text: str
    ended: bool
    cut: int = 0
    log_probability: float | None = None


def generate_answers(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[str | Sequence[int]],
    settings: Generation,
    batch_size: int = 8,
    *,
    prompting: Prompting = PLAIN,
    leads: Sequence[int] | None = None,
    stop: Sequence[str] = (),
    seed: int = 0,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    watch: Callable[[str], None] | None = None,
    likelihoods: bool = False,
) -> list[Answer]:
    """Return what `model` writes after each prompt (text, or ids from a chat template).

    Each answer is what the prompt would get alone: prompts are padded at the left, or where `prompting` (the
    method's, for a trained model) or the model says that they cannot be, only those of one length share a batch, or
    none. Sampling is seeded by `seed`, and the caller's random state is left as it was. Prompts that leave too few
    positions lose their beginning, but for as many tokens as `leads` says of each (by default the tokenizer's opening
    one). Answers end at the model's own ids (see `add_stop_ids`) and at the texts in `stop` and `settings.stop`, which
    are not part of them. `watch` is called with each piece of the answer to a single prompt as it is written (with
    beams, once); `likelihoods` asks for `log_probability` (not with beams).
    Raises UsageError where `max_new_tokens` alone exceeds the model's positions.
    """
    limit, task = prompt_limit(model, settings, prompting), task_of(model)
    whole = [task.encode_prompt(tokenizer, one) if isinstance(one, str) else one for one in prompts]
    kept = [opening_tokens(ids, tokenizer) for ids in whole] if leads is None else leads
    ids = [task.cut_prompt(one, lead, limit) for one, lead in zip(whole, kept, strict=True)]
    ends = [*settings.stop, *stop]
    answers = [Answer("", False)] * len(ids)
    device = next(model.parameters()).device
    config = _generation_config(model, tokenizer, settings)
    streamer = watch and PieceStreamer(tokenizer, set(config.eos_token_id or ()), ends, watch)
    with evaluation_mode(model), torch.no_grad(), _seeded(seed, device), autocast():
        for batch in split_prompts(model, ids, batch_size, prompting):
            measured = TokenLikelihoods() if likelihoods and config.num_beams == 1 else None
            written = _generate(model, [ids[i] for i in batch], config, device, tokenizer, ends, streamer, measured)
            for i, (answer, ended, likelihood) in zip(batch, written, strict=True):
                answer_text = tokenizer.decode(answer, skip_special_tokens=True)
                text = _before_stop(answer_text, ends)
                ended = ended or len(text) < len(answer_text)
                answers[i] = Answer(text.strip(), ended, len(whole[i]) - len(ids[i]), likelihood)
                if streamer:
                    streamer.finish(answers[i].text)
    return answers


def split_prompts(
    model: nn.Module, prompts: Sequence[Sequence[int]], batch_size: int, prompting: Prompting
) -> list[list[int]]:
    """Return the numbers of the prompts in each batch, those of like length together."""
    size = 1 if not prompting.batched or _model_type(model) in ANSWERS_ALONE | MIXES_ROWS else batch_size
    padded = prompting.padded and takes_padding(model) or task_of(model).encodes_prompt
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    return list(_split(order, prompts, size, padded=padded))


def opening_tokens(ids: Sequence[int], tokenizer: Any) -> int:
    """Return how many tokens begin a prompt whatever it says: 1 where it begins with the tokenizer's own."""
    return int(len(ids) > 0 and ids[0] == getattr(tokenizer, "bos_token_id", None))


def takes_padding(model: nn.Module) -> bool:
    """Return whether prompts may be padded at the left: whether the model counts positions from their first token.

    Transformers gives positions to a model that asks for them, and others count by the attention mask. A model
    that counts from the batch's first column (Whisper, BART's decoder), takes no mask (RWKV) or does not apply it
    everywhere would answer otherwise.
    """
    base: Any = find_base(model)[1]
    asks = "position_ids" in inspect.signature(base.forward).parameters
    return (asks or _model_type(model) in POSITIONS_BY_MASK) and _model_type(model) not in READS_PADDING


def _model_type(model: nn.Module) -> str:
    return getattr(getattr(find_base(model)[1], "config", None), "model_type", "")


def add_stop_ids(model: Any, stop_ids: Sequence[int]) -> None:
    """Make generation with `model` stop at these tokens too, here and wherever its generation config is saved."""
    config = getattr(model, "generation_config", None)
    if config is None or not stop_ids:
        return
    own = config.eos_token_id
    ends = {*(own if isinstance(own, list) else [own]), *stop_ids} - {None}
    config.eos_token_id = sorted(ends) if len(ends) > 1 else ends.pop()


def save_generation(model: Any, folder: Path) -> None:
    """Write the ids that end an answer as `generation_config.json`, where a method's own files have no such file."""
    config = getattr(model, "generation_config", None)
    if config is None or not model.can_generate() or (folder / "generation_config.json").exists():
        return
    GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        **_decoder_start(model),
    ).save_pretrained(folder)


def _before_stop(text: str, stop: Sequence[str]) -> str:
    return text[: min((place for end in stop if (place := text.find(end)) >= 0), default=len(text))]


def answer_prompts(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    dataset: Dataset,
    settings: Evaluation,
    *,
    batch_size: int,
    prompting: Prompting,
    autocast: Callable[[], AbstractContextManager],
    seed: int = 0,
) -> list[Answer]:
    """Return what `model` writes after prompts of `dataset`, ended where its training rows end."""
    return generate_answers(
        model,
        tokenizer,
        [prompt.input_ids for prompt in prompts],
        settings.generation,
        batch_size,
        prompting=prompting,
        leads=[prompt.lead for prompt in prompts],
        stop=dataset.stop_texts,
        seed=seed,
        autocast=autocast,
    )


def generate_examples(
    model: nn.Module,
    dataset: Dataset,
    settings: Evaluation,
    tokenizer: Any,
    *,
    batch_size: int = 8,
    prompting: Prompting = PLAIN,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> list[dict[str, str]]:
    """Return prompt, reference and output of the first `generation.examples` evaluation prompts."""
    prompts = dataset.prompts[: settings.generation.examples]
    outputs = answer_prompts(
        model, tokenizer, prompts, dataset, settings, batch_size=batch_size, prompting=prompting, autocast=autocast
    )
    return [
        {"prompt": prompt.text, "reference": prompt.references[0], "output": output.text}
        for prompt, output in zip(prompts, outputs, strict=True)
    ]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and each back into its own mode afterwards.

    `model.train()` would not do: it would switch on the dropout of modules that a recipe keeps off.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def prompt_limit(model: nn.Module, settings: Generation, prompting: Prompting = PLAIN) -> int:
    """Return how many tokens of a prompt leave room for the answer in the model's positions."""
    positions = count_positions(model)
    if not positions:
        return sys.maxsize
    beside = task_of(model).encodes_prompt
    left = positions - settings.max_new_tokens
    limit = (positions if beside else left) - prompting.reserved
    if limit < 1 or left < beside:  # beside an encoder, the decoder's start token needs a position
        raise UsageError(
            f"evaluation.generation.max_new_tokens: {settings.max_new_tokens} leave no room for a prompt in the"
            f" model's {positions} positions"
        )
    return limit


def _generation_config(model: Any, tokenizer: Any, settings: Generation) -> GenerationConfig:
    """Return settings that take nothing from the model's own but the ids that end an answer."""
    own = model.generation_config.eos_token_id if getattr(model, "generation_config", None) else None
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    sampling = {"temperature": settings.temperature, "top_p": settings.top_p} if settings.temperature else {}
    return GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        num_beams=settings.beams,
        do_sample=settings.temperature > 0,
        top_k=0 if settings.temperature else None,
        repetition_penalty=1.0,
        eos_token_id=sorted(ends) or None,
        pad_token_id=find_pad_id(tokenizer),
        **_decoder_start(model),
        use_cache=True,  # whatever a run that checkpoints gradients set in the model
        **sampling,
    )


def _decoder_start(model: Any) -> dict[str, Any]:
    """Return how the decoder of an encoder-decoder model begins, and what it never writes."""
    if not task_of(model).encodes_prompt:
        return {}
    own = model.generation_config
    start = find_decoder_start(model.config) if own.decoder_start_token_id is None else own.decoder_start_token_id
    return {
        "decoder_start_token_id": start,
        "forced_bos_token_id": own.forced_bos_token_id,
        "bad_words_ids": own.bad_words_ids,
    }


def _split(order: list[int], ids: Sequence[Sequence[int]], batch_size: int, *, padded: bool) -> Iterator[list[int]]:
    """Cut prompts, sorted by length, into batches; unpadded batches have prompts of one length only."""
    batch: list[int] = []
    for i in order:
        if len(batch) == batch_size or (batch and not padded and len(ids[i]) != len(ids[batch[0]])):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def pad_prompts(model: nn.Module, prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and attention mask (int64): padded at the right where an encoder reads the prompts, else at the left.

    Answers continue prompts without an encoder, so these must end in the last column.
    """
    if not task_of(model).encodes_prompt:
        return pad_left(prompts, pad_id)
    flipped = pad_left([prompt[::-1] for prompt in prompts], pad_id)
    return flipped[0].flip(1), flipped[1].flip(1)


def pad_left(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and attention mask (int64), every prompt ending in the last column."""
    width = max(len(prompt) for prompt in prompts)
    ids = [[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)


def _generate(
    model: Any,
    prompts: list[list[int]],
    config: GenerationConfig,
    device: torch.device,
    tokenizer: Any,
    texts: Sequence[str],
    streamer: PieceStreamer | None,
    measured: TokenLikelihoods | None,
) -> Iterator[tuple[list[int], bool, float | None]]:
    """Yield the ids that `model` adds to each prompt, before any that ends an answer, whether there is one, and
    what `measured` says of them and of the end.
    """
    input_ids, mask = pad_prompts(model, prompts, config.pad_token_id)
    begun = 1 if task_of(model).encodes_prompt else input_ids.shape[1]  # a decoder's own start token
    stop = StopTexts(tokenizer, texts, begun) if texts else None
    beside: dict[str, Any] = {"stopping_criteria": StoppingCriteriaList([stop])} if stop else {}
    if streamer and config.num_beams == 1:  # beams change what was written before
        beside["streamer"] = streamer
    if measured:
        beside["logits_processor"] = LogitsProcessorList([measured])
    with without_own_settings(model):
        sequences = model.generate(
            input_ids=input_ids.to(device), attention_mask=mask.to(device), generation_config=config, **beside
        )
    ends = set(config.eos_token_id or ())
    gains = measured.finish(sequences) if measured else None
    for row, sequence in enumerate(sequences[:, begun:].tolist()):
        end = next((i for i, token in enumerate(sequence) if token in ends), len(sequence))
        # Behind a stop text there is padding, which may be an end's own id. An end is a part of what was written.
        ended = stop.count(sequence[:end]) if stop else None
        kept, counted = (end, end + 1) if ended is None else (ended, ended)
        likelihood = None if gains is None else float(gains[row, :counted].sum())
        yield sequence[:kept], ended is not None or end < len(sequence), likelihood
