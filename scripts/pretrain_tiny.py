"""Pretrains `builtin:tiny`, a small Llama-style decoder with biases, from Python's own library and manual.

Run: python scripts/pretrain_tiny.py --output tiny-out            (under an hour on two quiet cores)
     python scripts/pretrain_tiny.py --output tiny-out --resume   (resumes after an interruption)
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from stdlib_corpus import read_corpus
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 4096
SEQUENCE = 256
HIDDEN, LAYERS, HEADS, INTERMEDIATE = 192, 6, 3, 512
MAX_POSITIONS = 512
INITIAL_DEVIATION = 0.04
EOS, PAD = "<|endoftext|>", "<|pad|>"
HELD_OUT_EVERY = 50
HELD_OUT_ROWS = 256
WARMUP_STEPS = 100
DECAY_SHARE = 0.3
REPORT_EVERY = 20
CHECKPOINT = "resume.pt"
CARD = Path(__file__).with_name("tiny_model_card.md")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the model, the log and the checkpoint")
    parser.add_argument("--steps", type=int, default=3000, help="optimiser steps (default %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help=f"rows of {SEQUENCE} tokens (default %(default)s)")
    parser.add_argument(
        "--learning-rate", type=float, default=4e-3, help="peak learning rate of AdamW (default %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default %(default)s)")
    parser.add_argument(
        "--precision",
        choices=("bfloat16", "float32"),
        default="bfloat16",
        help="of the matrix products; weights and optimiser stay float32 (default %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and order (default %(default)s)")
    parser.add_argument("--save-every", type=int, default=250, help="steps between checkpoints (default %(default)s)")
    parser.add_argument(
        "--resume", action="store_true", help="resume from the checkpoint in --output; repeat the other options"
    )
    arguments = parser.parse_args()
    if min(arguments.steps, arguments.batch, arguments.threads, arguments.save_every) < 1:
        parser.error("--steps, --batch, --threads and --save-every must be at least 1")
    if arguments.resume and not (arguments.output / CHECKPOINT).is_file():
        parser.error(f"--resume: no {CHECKPOINT} in {arguments.output}; start without --resume")
    return arguments


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE; every text survives encoding and decoding unchanged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Build the decoder with its random weights; biases start at zero and residual outputs start small."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=MAX_POSITIONS,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
        initializer_range=INITIAL_DEVIATION,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                linear.weight.mul_(1 / math.sqrt(2 * LAYERS))
    return model


def encode_stream(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> np.ndarray:
    """Join the texts' tokens into one stream with an eos after each."""
    rows = tokenizer.backend_tokenizer.encode_batch(texts)
    return np.concatenate([np.array([*row.ids, tokenizer.eos_token_id], dtype=np.uint16) for row in rows])


@dataclass(frozen=True)
class Order:
    """Which rows a step sees: a function of seed and step alone, so that a resumed run equals a straight one."""

    stream: np.ndarray
    batch: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return (len(self.stream) // SEQUENCE - 1) // self.batch

    def rows(self, step: int) -> torch.Tensor:
        epoch, index = divmod(step, self.steps_per_epoch)
        random = np.random.default_rng([self.seed, epoch])
        shift = int(random.integers(SEQUENCE))  # so that epochs cut the text at different places
        starts = random.permutation(self.steps_per_epoch * self.batch) * SEQUENCE + shift
        chosen = starts[index * self.batch : (index + 1) * self.batch]
        return torch.from_numpy(np.stack([self.stream[s : s + SEQUENCE] for s in chosen]).astype(np.int64))


def learning_rate_share(step: int, steps: int) -> float:
    """Return the share of the peak learning rate at a step: warm-up, plateau, then linear to zero."""
    decay_steps = max(1, int(steps * DECAY_SHARE))
    return min((step + 1) / WARMUP_STEPS, 1.0, (steps - step) / decay_steps)


def build_optimizer(model: LlamaForCausalLM, learning_rate: float) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)


def next_token_loss(model: LlamaForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of each next token; without the copies of the logits that the model's own loss makes."""
    hidden = model.model(input_ids=rows).last_hidden_state[:, :-1].flatten(0, 1)
    return cross_entropy(model.lm_head(hidden), rows[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, stream: np.ndarray) -> float:
    """Mean loss over rows spread evenly over the held-out documents."""
    count = min(HELD_OUT_ROWS, len(stream) // SEQUENCE)
    starts = np.linspace(0, len(stream) - SEQUENCE, count).astype(int)
    rows = torch.from_numpy(np.stack([stream[s : s + SEQUENCE] for s in starts]).astype(np.int64))
    losses = [next_token_loss(model, part).item() for part in rows.split(8)]
    return sum(losses) / len(losses)


@dataclass
class Clock:
    """Progress that a resumed run takes over."""

    step: int = 0
    seconds: float = 0.0
    loss: float = float("nan")
    held_out: float = float("nan")


def save_checkpoint(folder: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, clock: Clock) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "clock": vars(clock)}
    partial = folder / f"{CHECKPOINT}.partial"
    torch.save(state, partial)
    os.replace(partial, folder / CHECKPOINT)


def load_checkpoint(folder: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer) -> Clock:
    state = torch.load(folder / CHECKPOINT, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return Clock(**state["clock"])


def export_model(folder: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, card: str) -> None:
    """Write the model as users load it: bf16 weights, tokenizer, configs and card."""
    exported = LlamaForCausalLM(model.config)
    exported.load_state_dict(model.state_dict())
    exported.config.use_cache = True
    exported.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, max_new_tokens=48, do_sample=False
    )
    exported.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model.config.use_cache = False
    (folder / "model.safetensors").chmod(0o644)  # safetensors leaves it readable by its owner only
    (folder / "README.md").write_text(card, encoding="utf-8")


def describe_model(model: LlamaForCausalLM, clock: Clock, arguments: argparse.Namespace, sizes: dict[str, int]) -> str:
    """Write the model card from what this run did."""
    unfinished = "" if clock.step == arguments.steps else "**Unfinished: an intermediate checkpoint.**\n\n"
    return CARD.read_text(encoding="utf-8").format(
        unfinished=unfinished,
        parameters=sum(p.numel() for p in model.parameters()),
        layers=LAYERS,
        hidden=HIDDEN,
        heads=HEADS,
        head_width=HIDDEN // HEADS,
        intermediate=INTERMEDIATE,
        vocabulary=VOCABULARY,
        uniform=math.log(VOCABULARY),
        positions=MAX_POSITIONS,
        sequence=SEQUENCE,
        tokens=clock.step * arguments.batch * SEQUENCE,
        minutes=clock.seconds / 60,
        decay=DECAY_SHARE,
        warmup=WARMUP_STEPS,
        python=platform.python_version(),
        torch=torch.__version__,
        **vars(clock),
        **vars(arguments),
        **sizes,
    )


@dataclass
class Corpus:
    """The text as two streams of tokens, and the numbers about it that the card gives."""

    tokenizer: PreTrainedTokenizerFast
    training: np.ndarray
    held_out: np.ndarray
    sizes: dict[str, int]


def prepare_corpus() -> Corpus:
    texts = [text for _, text in read_corpus()]
    tokenizer = train_tokenizer(texts)
    training = encode_stream(tokenizer, [text for i, text in enumerate(texts) if i % HELD_OUT_EVERY])
    held_out = encode_stream(tokenizer, texts[::HELD_OUT_EVERY])
    sizes = {
        "documents": len(texts),
        "characters": sum(map(len, texts)),
        "held_out_every": HELD_OUT_EVERY,
        "stream_tokens": len(training) + len(held_out),
    }
    return Corpus(tokenizer, training, held_out, sizes)


def train_step(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, rows: torch.Tensor, mixed: bool) -> float:
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        loss = next_token_loss(model, rows)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def pretrain(arguments: argparse.Namespace, corpus: Corpus) -> None:
    """Train for a fixed number of steps; at every checkpoint the output folder contains a model that loads."""
    model = build_model(corpus.tokenizer)
    optimizer = build_optimizer(model, arguments.learning_rate)
    clock = load_checkpoint(arguments.output, model, optimizer) if arguments.resume else Clock()
    order = Order(corpus.training, arguments.batch, arguments.seed)
    started = time.perf_counter() - clock.seconds
    while clock.step < arguments.steps:
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * learning_rate_share(clock.step, arguments.steps)
        loss = train_step(model, optimizer, order.rows(clock.step), arguments.precision == "bfloat16")
        clock.step += 1
        clock.seconds = time.perf_counter() - started
        clock.loss = loss if math.isnan(clock.loss) else 0.98 * clock.loss + 0.02 * loss
        checkpoint_due = clock.step % arguments.save_every == 0 or clock.step == arguments.steps
        if checkpoint_due:
            clock.held_out = held_out_loss(model, corpus.held_out)
            save_checkpoint(arguments.output, model, optimizer, clock)
            card = describe_model(model, clock, arguments, corpus.sizes)
            export_model(arguments.output, model, corpus.tokenizer, card)
        if checkpoint_due or clock.step % REPORT_EVERY == 0:
            report(arguments.output, clock, optimizer.param_groups[0]["lr"], arguments.batch)


def report(folder: Path, clock: Clock, learning_rate: float, batch: int) -> None:
    """Print one line and append it to the log."""
    speed = clock.step * batch * SEQUENCE / clock.seconds
    line = json.dumps({**vars(clock), "learning_rate": learning_rate, "tokens_per_second": round(speed)})
    print(line, flush=True)
    with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write(line + "\n")


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    arguments.output.mkdir(parents=True, exist_ok=True)
    pretrain(arguments, prepare_corpus())


if __name__ == "__main__":
    main()
