"""Memory savings of LoRA and QLoRA against full fine-tuning: planned for published sizes, measured at a small one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

from peftlab.files import write_atomically
from peftlab.studies.charts import Chart, Curves, Intervals, Point
from peftlab.studies.compared import Arm, Compared
from peftlab.studies.parts import Comparing, Planned, Planning
from peftlab.studies.quantity import Quantity
from peftlab.studies.study import Expectation, Found, Setting, Study, Table

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False, "max_position_embeddings": 4096,
}  # fmt: skip


def llama(
    hidden: int, inner: int, layers: int, heads: int, keys: int, vocabulary: int, **others: Any
) -> dict[str, Any]:
    """Return the config of a Llama of these sizes."""
    return LLAMA | {
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": keys, "head_dim": hidden // heads, "vocab_size": vocabulary,
    } | others  # fmt: skip


# Published sizes, from the models' own config.json.
SHAPES = {
    "llama-2-7b": llama(4096, 11008, 32, 32, 32, 32000),
    "llama-3.1-8b": llama(4096, 14336, 32, 32, 8, 128256),
    "llama-2-13b": llama(5120, 13824, 40, 40, 40, 32000),
    "llama-65b": llama(8192, 22016, 80, 64, 64, 32000),
    "llama-3.1-70b": llama(8192, 28672, 80, 64, 8, 128256),
}
MEASURED = {
    "trial": llama(128, 256, 3, 4, 4, 4096, tie_word_embeddings=True),
    "small": llama(512, 1536, 8, 8, 4, 4096, tie_word_embeddings=True),
    "large": llama(1024, 2816, 16, 16, 8, 4096, tie_word_embeddings=True),
}
PLANNED = {"trial": (), "small": ("llama-2-7b", "llama-3.1-8b", "llama-65b"), "large": tuple(SHAPES)}
METHODS = {
    "full": {"type": "full"},
    "lora": {"type": "lora", "rank": 16, "targets": "all-linear"},
    "qlora": {"type": "qlora", "rank": 16, "targets": "all-linear"},
}
SEVEN, SIXTY_FIVE = "llama-2-7b", "llama-65b"
# The same weights in another type, to count what they take alone.
TYPES = {"float32": ("lora", "float32"), "16 bits": ("lora", "bfloat16"), "4 bits": ("qlora", "bfloat16")}
GB = 1e9


def planned_recipe(shape: Path, method: str, length: int, dtype: str = "auto") -> dict[str, Any]:
    """Return a recipe that is only planned: as if the folder had weights, which would be quantised as they load."""
    values = recipe(shape, method, length, 1)
    values["model"] |= {"init": "pretrained", "dtype": dtype}
    values["training"] |= {"gradient_checkpointing": True}
    return values


def recipe(shape: Path, method: str, length: int, rows: int) -> dict[str, Any]:
    return {
        "model": {"name": str(shape), "init": "random", "tokenizer": "builtin:tiny"},
        "method": METHODS[method],
        "data": {
            "train": "builtin:docstrings[train]", "evaluation": "builtin:docstrings[test]", "format": "completion",
            "max_length": length, "evaluation_rows": 8,
        },
        "training": {"steps": 3, "batch_size": rows, "learning_rate": 1e-4, "gradient_checkpointing": False},
        "evaluation": {"metrics": ["loss"], "generation": {"examples": 0}},
        "run": {"seed": 0},
    }  # fmt: skip


def parts(setting: Setting) -> list[Planning | Comparing]:
    shapes, small = setting.folder / "shapes", MEASURED[setting.size]

    def write_shapes(folder: Path) -> None:
        for name, config in {**SHAPES, "measured": small}.items():
            path = folder / "shapes" / name / "config.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                write_atomically(path, json.dumps(config, indent=1) + "\n")

    plans = {
        f"{name} {method}": planned_recipe(shapes / name, method, 512)
        for name in PLANNED[setting.size]
        for method in METHODS
    }
    if SEVEN in PLANNED[setting.size]:
        plans |= {f"{SEVEN} in {name}": planned_recipe(shapes / SEVEN, method, 16, dtype)
                  for name, (method, dtype) in TYPES.items()}  # fmt: skip
    planned = Planning("plans", plans, device="cuda", memory="H100", prepare=write_shapes)
    measured = Comparing(
        "measured", {method: recipe(shapes / "measured", method, 256, 4) for method in METHODS}, seeds=1,
        prepare=write_shapes,
    )  # fmt: skip
    return [planned, measured] if plans else [measured]


def expectations(size: str) -> list[Expectation]:
    seven = [
        Expectation("float32", f"weights of {SEVEN} in float32", 28 * 0.95, 28 * 1.05, "GB"),
        Expectation("16 bits", f"weights of {SEVEN} in 16 bits", 14 * 0.95, 14 * 1.05, "GB"),
        Expectation("4 bits", f"weights of {SEVEN} in 4 bits (NF4), embedding and head in 16", 3.3, 4.2, "GB"),
    ]
    planned = [
        one
        for name in PLANNED[size]
        for one in (
            Expectation(
                f"{name} adam", f"{name}, full: weight, gradient and AdamW of a parameter", 15.9, 16.1, "bytes"
            ),
            Expectation(f"{name} lora", f"{name}: planned peak of LoRA as a share of full's", -inf, 1 / 3),
        )
    ]
    if SIXTY_FIVE in PLANNED[size]:
        planned.append(Expectation("65b qlora", f"{SIXTY_FIVE}: planned peak of QLoRA", -inf, 48, "GB"))
    measured = [
        Expectation("measured adam", "measured, full: weight, gradient and AdamW of a parameter", 15.9, 16.1, "bytes"),
        Expectation(
            "measured lora", "measured: weights, gradients and optimiser of LoRA as a share of full's", -inf, 1 / 3
        ),
        Expectation("measured qlora", "measured: the same of QLoRA as a share of LoRA's", -inf, 1 / 2),
        *(
            Expectation(f"plan of {method}", f"error of the predicted peak of {method}", -2, 2, "%")
            for method in METHODS
        ),
    ]
    return [*(seven if SEVEN in PLANNED[size] else []), *planned, *measured]


def state_bytes(categories: Mapping[str, int]) -> int:
    """Return what weights, gradients and optimiser take; each gradient is as large as its weight."""
    frozen = ("frozen_weights", "quantisation_state", "optimiser_state")
    return sum(categories.get(name, 0) for name in frozen) + 2 * categories.get("trainable_weights", 0)


def bytes_a_parameter(categories: Mapping[str, int], trainable: int) -> Quantity:
    """Return weight, gradient and optimiser state of one trained parameter."""
    own = 2 * categories.get("trainable_weights", 0) + categories.get("optimiser_state", 0)
    return Quantity.exact(own / trainable)


def measure(results: Mapping[str, Any], confidence: float) -> Found:
    quantities: dict[str, Quantity | None] = {}
    tables: list[Table] = []
    charts: list[Chart] = []
    if "plans" in results:
        plans: Planned = results["plans"]
        names = [label.removesuffix(" full") for label in plans.reports if label.endswith(" full")]
        for name in names:
            quantities |= planned_quantities(plans, name)
        quantities |= {
            name: Quantity.exact(weight_bytes(plans, f"{SEVEN} in {name}") / GB)
            for name in TYPES if f"{SEVEN} in {name}" in plans.reports
        }  # fmt: skip
        tables.append(planned_table(plans, names))
        charts.append(planned_chart(plans, names))
    compared: Compared = results["measured"]
    quantities |= measured_quantities(compared)
    tables.append(measured_table(compared))
    charts.append(measured_chart(compared))
    return Found(quantities, tables, charts, [
        "The plans are for one CUDA device, one row of 512 tokens a step, all layers recomputed, weights in 16 bits "
        "(trained ones in float32). Nothing of them was measured on CUDA here."
    ] if "plans" in results else [])  # fmt: skip


def weight_bytes(plans: Planned, label: str) -> int:
    """Return what a base takes alone: its weights and their quantisation state."""
    categories = plans.reports[label].categories
    return categories.get("frozen_weights", 0) + categories.get("quantisation_state", 0)


def planned_quantities(plans: Planned, name: str) -> dict[str, Quantity | None]:
    full, lora, qlora = (plans.reports[f"{name} {method}"] for method in METHODS)
    found: dict[str, Quantity | None] = {
        f"{name} adam": bytes_a_parameter(full.categories, plans.trainable[f"{name} full"]),
        f"{name} lora": Quantity.exact(lora.peak_bytes / full.peak_bytes),
    }
    return found | ({"65b qlora": Quantity.exact(qlora.peak_bytes / GB)} if name == SIXTY_FIVE else {})


def measured_quantities(compared: Compared) -> dict[str, Quantity | None]:
    found: dict[str, Quantity | None] = {}
    arms = {method: arm for method, arm in compared.arms.items() if "measured" in arm.categories}
    states = {method: state_bytes(arm.categories["measured"]) for method, arm in arms.items()}
    if "full" in arms:
        found["measured adam"] = bytes_a_parameter(arms["full"].categories["measured"], arms["full"].trainable)
    for method, other in (("lora", "full"), ("qlora", "lora")):
        if {method, other} <= states.keys():
            found[f"measured {method}"] = Quantity.exact(states[method] / states[other])
    for method, arm in arms.items():
        if "predicted" in arm.peak_bytes:
            error = arm.peak_bytes["predicted"] / arm.peak_bytes["measured"] - 1
            found[f"plan of {method}"] = Quantity.exact(100 * error)
    return found


def planned_table(plans: Planned, names: Sequence[str]) -> Table:
    rows = []
    for name in names:
        for method in METHODS:
            report, label = plans.reports[f"{name} {method}"], f"{name} {method}"
            full = plans.reports[f"{name} full"].peak_bytes
            cells = f"{plans.trainable[label]:,}", f"{plans.trainable[label] / plans.total[label]:.3%}"
            rows.append([label, *cells, f"{state_bytes(report.categories) / GB:,.1f} GB",
                         f"{report.peak_bytes / GB:,.1f} GB", f"{report.peak_bytes / full:.3f}"])  # fmt: skip
    columns = ["model and method", "trainable", "of all", "weights, gradients, optimiser", "peak of tensors", "of full"]
    return Table("Planned for published sizes", columns, rows)


def planned_chart(plans: Planned, names: Sequence[str]) -> Curves:
    def points(method: str) -> list[Point]:
        labels = [f"{name} {method}" for name in names]
        values = sorted((plans.total[f"{name} full"] / GB, plans.reports[label].peak_bytes / GB)
                        for name, label in zip(names, labels, strict=True))  # fmt: skip
        return [Point(x, y, y, y) for x, y in values]

    return Curves(
        "planned", "Planned peak by model size", "One row of 512 tokens a step, all layers recomputed.",
        "parameters of the model, billions", "peak, GB", {method: points(method) for method in METHODS},
        log_x=True, log_y=True,
    )  # fmt: skip


def measured_table(compared: Compared) -> Table:
    rows = [measured_row(label, arm) for label, arm in compared.arms.items()]
    columns = ["method", "trainable", "weights, gradients, optimiser", "predicted peak", "measured peak"]
    return Table(
        "Measured", columns, rows, "A Llama with random weights, 4 rows of at most 256 tokens a step, float32."
    )


def measured_row(label: str, arm: Arm) -> list[str]:
    peaks = [
        f"{arm.peak_bytes[one] / 1e6:,.1f} MB" if one in arm.peak_bytes else "–" for one in ("predicted", "measured")
    ]
    state = f"{state_bytes(arm.categories['measured']) / 1e6:,.1f} MB" if "measured" in arm.categories else "–"
    return [label, f"{arm.trainable:,}", state, *peaks]


def measured_chart(compared: Compared) -> Intervals:
    sizes = {
        label: state_bytes(arm.categories["measured"]) / 1e6
        for label, arm in compared.arms.items() if "measured" in arm.categories
    }  # fmt: skip
    return Intervals(
        "measured", "Measured weights, gradients and optimiser state", "What a method needs before any activation.",
        "MB", {label: (size, size, size) for label, size in sizes.items()}, log_x=True,
    )  # fmt: skip


MEMORY_SAVINGS = Study(
    name="memory-savings",
    question="How much memory do LoRA and QLoRA save against full fine-tuning?",
    claim="A trained parameter takes 16 bytes with AdamW in float32. A 7B model takes 28 GB in float32, 14 GB in 16 "
    "bits and a quarter of that in 4 bits. LoRA needs at most a third of full fine-tuning's memory, and QLoRA trains a "
    "model of 65B in 48 GB. What is planned is what is measured, within 2 %.",
    source="LoRA (arXiv 2106.09685), QLoRA (arXiv 2305.14314)",
    minutes={"trial": 0.5, "small": 3, "large": 8},
    expectations=expectations,
    parts=parts,
    measure=measure,
)
