"""Capacity: how many bits of random strings a method can store in its trainable parameters.

The base has random weights and stays frozen, so that whatever is stored is in what trains. The strings are of symbols
drawn alike, each worth log2(symbols) bits; what a model needs less than that for them is what it has stored (as in
arXiv 2505.24832). There is four times as much to store as parameters train, more than any method is known to store.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log, log2
from pathlib import Path
from typing import Any

from peftlab.files import write_atomically
from peftlab.studies.charts import Curves, Intervals, Point
from peftlab.studies.compared import Compared
from peftlab.studies.parts import Comparing
from peftlab.studies.quantity import Quantity
from peftlab.studies.study import Expectation, Found, Setting, Study, Table

SYMBOLS, LENGTH = 256, 64
END, PADDING = "<end>", "<pad>"
BITS_ASKED = 4.0  # for each trained parameter
REFERENCE = "lora"


@dataclass(frozen=True)
class Scale:
    """A size: the model's hidden width and layers, the counts of trainable parameters, steps and seeds."""

    hidden: int
    layers: int
    counts: tuple[int, ...]
    steps: int
    seeds: int


SCALES = {
    "trial": Scale(32, 2, (1088,), 10, 2),
    "small": Scale(64, 2, (2176, 4352), 200, 3),
    "large": Scale(128, 4, (17408, 34816, 69632), 2000, 5),
}
# Methods that can be sized, with the lower of the learning rates that are tried.
SIZED: dict[str, tuple[dict[str, Any], float]] = {
    "lora": ({"type": "lora", "rank": 4, "alpha": 8, "targets": "all-linear"}, 1e-2),
    "adapters": ({"type": "adapters", "bottleneck": 16}, 1e-2),
    "prefix": ({"type": "prefix", "length": 34}, 3e-2),
}
FULL, BITFIT = "full", "bitfit"
OWN_LEARNING_RATES = {FULL: 3e-3, BITFIT: 3e-2}
FACTORS = (1.0, 3.0)


def model_config(hidden: int, layers: int) -> dict[str, Any]:
    """Return a Llama whose random features differ widely: with transformers' usual 0.02 they are nearly alike."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-6,
        "hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": layers,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": hidden // 2, "vocab_size": SYMBOLS + 2,
        "eos_token_id": 0, "pad_token_id": 1, "tie_word_embeddings": True, "initializer_range": 0.2,
        "max_position_embeddings": 4 * LENGTH, "attention_bias": True, "mlp_bias": True,
    }  # fmt: skip


def write_model(folder: Path, hidden: int, layers: int) -> None:
    """Write a model's config and a tokenizer with a token for each symbol."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    if (folder / "tokenizer_config.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    names = [END, PADDING, *(f"s{number}" for number in range(SYMBOLS))]
    tokenizer = Tokenizer(WordLevel({name: place for place, name in enumerate(names)}, unk_token=END))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    write_atomically(folder / "config.json", json.dumps(model_config(hidden, layers), indent=1) + "\n")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PADDING).save_pretrained(folder)


def count_strings(trained: int) -> int:
    """Return how many strings are worth `BITS_ASKED` for each trained parameter; the first symbol is not predicted."""
    return max(2, round(trained * BITS_ASKED / (log2(SYMBOLS) * (LENGTH - 1))))


def write_strings(path: Path, count: int) -> None:
    """Write random strings, the same ones each time."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    lines = [json.dumps({"text": " ".join(f"s{draw.randrange(SYMBOLS)}" for _ in range(LENGTH))}) for _ in range(count)]
    write_atomically(path, "\n".join(lines) + "\n")


def recipe(
    folder: Path, model: str, data: str, method: dict[str, Any], learning_rate: float, scale: Scale, rows: int
) -> dict[str, Any]:
    """Return a recipe that trains on strings and is scored on the same: what is learned by heart is asked."""
    strings = str(strings_path(folder, data))
    return {
        "model": {"name": str(folder / model), "init": "random"},
        "method": method,
        "data": {
            "train": strings, "evaluation": strings, "test": strings, "format": "text", "max_length": LENGTH + 1,
        },
        "training": {
            "steps": scale.steps, "batch_size": min(rows, 128), "learning_rate": learning_rate, "schedule": "cosine",
            "warmup": 0.05,
        },
        "evaluation": {"metrics": ["loss"], "batch_size": 64, "generation": {"examples": 0}},
        "run": {"seed": 0},
    }  # fmt: skip


def strings_path(folder: Path, data: str) -> Path:
    return folder / "data" / f"strings-{data}.jsonl"


def parts(setting: Setting) -> list[Comparing]:
    scale = SCALES[setting.size]
    sized = [compare_at(setting.folder, scale, count) for count in scale.counts]
    width = full_width(scale)
    return [
        *sized,
        compare_alone(setting.folder, scale, BITFIT, scale.hidden, count_biases(scale.hidden, scale.layers)),
        compare_alone(setting.folder, scale, FULL, width, count_full(width, scale.layers)),
    ]


def compare_at(folder: Path, scale: Scale, count: int) -> Comparing:
    """Return the comparison of the methods that can be sized, each to `count` trainable parameters.

    At counts below the largest only LoRA is run, to see how its capacity grows.
    """
    rows = count_strings(count)
    names = SIZED if count == max(scale.counts) else [REFERENCE]
    recipes = {name: recipe(folder, f"model-{scale.hidden}", str(count), *SIZED[name], scale, rows) for name in names}

    def prepare(folder: Path) -> None:
        write_model(folder / f"model-{scale.hidden}", scale.hidden, scale.layers)
        write_strings(strings_path(folder, str(count)), rows)

    return Comparing(
        f"trained-{count}", recipes, seeds=scale.seeds, factors=FACTORS, extensions=1, budgets=[f"trainable={count}"],
        prepare=prepare,
    )  # fmt: skip


def compare_alone(folder: Path, scale: Scale, name: str, width: int, count: int) -> Comparing:
    """Return the runs of a method that trains `count` parameters of a model of this width, and no other number."""
    rows, model = count_strings(count), f"model-{width}"
    values = recipe(folder, model, name, {"type": name}, OWN_LEARNING_RATES[name], scale, rows)

    def prepare(folder: Path) -> None:
        write_model(folder / model, width, scale.layers)
        write_strings(strings_path(folder, name), rows)

    return Comparing(name, {name: values}, seeds=scale.seeds, factors=FACTORS, extensions=1, prepare=prepare)


def full_width(scale: Scale) -> int:
    """Return the width, 16 or more, at which a whole model has about as many parameters as the largest count.

    A narrower model could not tell the symbols from one another.
    """
    widths = range(16, scale.hidden + 1, 4)
    return min(widths, key=lambda width: abs(count_full(width, scale.layers) - max(scale.counts)))


def count_full(hidden: int, layers: int) -> int:
    """Return the parameters of a whole model."""
    matrices, norms = 10 * hidden**2, 2 * hidden
    return layers * (matrices + norms) + count_biases(hidden, layers) + hidden + (SYMBOLS + 2) * hidden


def count_biases(hidden: int, layers: int) -> int:
    """Return the biases of a model: four of the attention, two of twice the width, one of the width."""
    return layers * 9 * hidden


def stored_bits(compared: Compared, label: str) -> list[float]:
    """Return the bits that each seed of a variant stored: what its strings are worth less what it needs for them."""
    strings = compared.targets / LENGTH
    worth = strings * (LENGTH - 1) * log2(SYMBOLS)
    return [worth - float(loss) * compared.targets / log(2) for loss in compared.values("loss", label)]


def bits_a_parameter(compared: Compared, label: str) -> list[float]:
    trainable = compared.arms[label].trainable if label in compared.arms else 0
    return [bits / trainable for bits in stored_bits(compared, label)] if trainable else []


def ratio(first: Sequence[float], second: Sequence[float], confidence: float) -> Quantity | None:
    """Return the mean ratio of two positive figures of each seed; None where a seed of either has none."""
    pairs = list(zip(first, second, strict=False))
    if not pairs or len(first) != len(second) or min(min(pair) for pair in pairs) <= 0:
        return None
    logs = Quantity.of_values([log(one / other) for one, other in pairs], confidence)
    return logs and logs.through(exp)


def expectations(size: str) -> list[Expectation]:
    smallest, largest = min(SCALES[size].counts), max(SCALES[size].counts)
    found = [Expectation("lora", f"bits that LoRA stores in each of {largest:,} trained parameters", 1, 4, "bits")]
    if smallest != largest:
        growth = largest / smallest
        text = f"what LoRA stores with {largest:,} trained parameters as a multiple of that with {smallest:,}"
        found.append(Expectation("growth", text, growth * 0.75, growth * 1.25))
    others = {
        "adapters": "adapters", "prefix": "prefix tuning", BITFIT: "BitFit", FULL: "full training of a smaller model",
    }  # fmt: skip
    return found + [
        Expectation(name, f"bits a parameter of {title} as a multiple of LoRA's", 0.5, 2)
        for name, title in others.items()
    ]


def measure(results: Mapping[str, Any], confidence: float) -> Found:
    by_count = {int(name.removeprefix("trained-")): one for name, one in results.items() if name.startswith("trained-")}
    smallest, largest = by_count[min(by_count)], by_count[max(by_count)]
    lora = bits_a_parameter(largest, REFERENCE)
    others = {name: largest for name in SIZED if name != REFERENCE} | {name: results[name] for name in (FULL, BITFIT)}
    quantities = {
        "lora": Quantity.of_values(lora, confidence),
        "growth": ratio(stored_bits(largest, REFERENCE), stored_bits(smallest, REFERENCE), confidence),
        **{name: ratio(bits_a_parameter(one, name), lora, confidence) for name, one in others.items()},
    }
    note = (
        f"Every run has {BITS_ASKED:g} bits of random strings to store for each trained parameter. It stores what its "
        "steps and the better of its learning rates allow: more steps may store more, so these are lower bounds."
    )
    return Found(quantities, [table_of(results)], [chart_of(by_count), bars_of({REFERENCE: largest} | others)], [note])


def table_of(results: Mapping[str, Compared]) -> Table:
    rows = []
    for compared in results.values():
        for label, arm in compared.arms.items():
            bits = Quantity.of_values(stored_bits(compared, label), 0.95)
            each = Quantity.of_values(bits_a_parameter(compared, label), 0.95)
            worth = compared.targets / LENGTH * (LENGTH - 1) * log2(SYMBOLS)
            found = _text(bits, ",.0f"), _text(each, ".2f")
            costs = f"{arm.learning_rate:g}", f"{arm.seconds:.0f}"
            rows.append([label, f"{arm.trainable:,}", f"{worth:,.0f}", *found, *costs])
    columns = ["method", "trainable", "bits to store", "bits stored", "bits a parameter", "learning rate", "seconds"]
    return Table("Bits stored", columns, rows, "Means over the seeds with 95 % intervals.")


def _text(one: Quantity | None, form: str) -> str:
    if one is None:
        return "–"
    return f"{one.value:{form}} [{one.low:{form}}, {one.high:{form}}]" if one.known else f"{one.value:{form}}"


def chart_of(by_count: Mapping[int, Compared]) -> Curves:
    def point(compared: Compared, label: str) -> list[Point]:
        found = Quantity.of_values(stored_bits(compared, label), 0.95)
        return [Point(compared.arms[label].trainable, found.value, found.low, found.high)] if found else []

    return Curves(
        "stored", "Bits stored by trained parameters", "Means over the seeds, with 95 % intervals.",
        "trained parameters", "bits stored",
        {name: [one for count in sorted(by_count) for one in point(by_count[count], name)] for name in SIZED},
        log_x=True, log_y=True,
    )  # fmt: skip


def bars_of(results: Mapping[str, Compared]) -> Intervals:
    found = {label: Quantity.of_values(bits_a_parameter(one, label), 0.95) for label, one in results.items()}
    return Intervals(
        "per_parameter", "Bits stored in each trained parameter", "Means over the seeds, with 95 % intervals.",
        "bits a parameter", {label: (one.value, one.low, one.high) for label, one in found.items() if one},
    )  # fmt: skip


CAPACITY = Study(
    name="capacity",
    question="How many bits can a method store in its trainable parameters?",
    claim="What a method can memorise depends on how many parameters it trains, and not on which method it is: 1 to 4 "
    "bits in each, twice as many for twice the parameters.",
    source="Physics of Language Models 3.3 (arXiv 2404.05405: 2 bits of knowledge a parameter); How much do language "
    "models memorize? (arXiv 2505.24832: 3.6 bits of random strings); LoRA Without Regret (Thinking Machines, 2025)",
    minutes={"trial": 1, "small": 5, "large": 240},
    expectations=expectations,
    parts=parts,
    measure=measure,
)
