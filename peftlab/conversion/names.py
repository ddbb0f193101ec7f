"""Names of schedules, optimisers and attention that the trainers share, as recipes write them."""

from __future__ import annotations

from typing import Any

from peftlab.conversion.sheet import Sheet

SCHEDULES = {"constant": "constant", "constant_with_warmup": "constant", "linear": "linear", "cosine": "cosine"}
NEAREST_SCHEDULE = {
    "cosine_with_restarts": "cosine",
    "cosine_with_min_lr": "cosine",
    "cosine_warmup_with_min_lr": "cosine",
    "inverse_sqrt": "linear",
}

ADAMW: dict[str, Any] = {"type": "adamw"}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": ADAMW,
    "adamw_torch": ADAMW,
    "adamw_torch_fused": ADAMW,
    "adamw_hf": ADAMW,
    "adamw_8bit": ADAMW | {"bits": 8},
    "adamw_bnb_8bit": ADAMW | {"bits": 8},
    "paged_adamw": ADAMW | {"paged": True},
    "paged_adamw_32bit": ADAMW | {"paged": True},
    "paged_adamw_8bit": ADAMW | {"bits": 8, "paged": True},
    "sgd": {"type": "sgd"},
}
ATTENTION = {
    "flash_attention_2": "flash_attention_2",
    "fa2": "flash_attention_2",
    "sdpa": "sdpa",
    "eager": "eager",
    "disabled": "eager",
    "auto": "auto",
}
PACKING = "without padding, and each row has its own attention here"


def take_schedule(sheet: Sheet, key: str, default: str) -> None:
    """Take the learning rate's schedule and its warm-up; `constant` has none in transformers."""
    name = str(sheet.get(key, default))
    if name in SCHEDULES:
        sheet.take(key, "training.schedule", SCHEDULES[name])
    else:
        nearest = NEAREST_SCHEDULE.get(name, "linear")
        sheet.set("training.schedule", nearest)
        sheet.miss(key, f"training.schedule = {nearest} instead; the learning rate falls in another way")
    if name == "constant":
        for warmup in ("warmup_steps", "warmup_ratio"):
            sheet.ignore(warmup, "`constant` has no warm-up there")
        return
    take_warmup(sheet)


def take_warmup(sheet: Sheet) -> None:
    """Take a warm-up in steps, which has priority, or as a fraction of all steps."""
    steps, ratio = sheet.number("warmup_steps"), sheet.number("warmup_ratio")
    if steps:
        sheet.take("warmup_steps", "training.warmup", steps if steps < 1 else int(steps))
        sheet.ignore("warmup_ratio", "warmup_steps has priority")
    else:
        sheet.ignore("warmup_steps", "none")
        if ratio is not None:
            sheet.take("warmup_ratio", "training.warmup", float(ratio))


def take_optimizer(sheet: Sheet, key: str, default: str = "adamw_torch") -> None:
    """Take the optimiser and, of AdamW, the betas and epsilon."""
    name = str(sheet.get(key, default)).removeprefix("OptimizerNames.").lower()
    if name in OPTIMIZERS:
        sheet.take(key, "training.optimizer", dict(OPTIMIZERS[name]))
    else:
        sheet.set("training.optimizer", dict(ADAMW))
        sheet.miss(key, "training.optimizer = adamw instead; its learning rate may not suit AdamW")
    if sheet.peek("training.optimizer.type") != ADAMW["type"]:
        sheet.ignore_all({"adam_*": "of AdamW only"})
        return
    if sheet.has("adam_beta1") or sheet.has("adam_beta2"):
        betas = [float(sheet.number("adam_beta1", 0.9)), float(sheet.number("adam_beta2", 0.999))]
        for name in ("adam_beta1", "adam_beta2"):
            if sheet.has(name):
                sheet.take(name, "training.optimizer.betas", betas)
    sheet.copy_number("adam_epsilon", "training.optimizer.eps")


def take_attention(sheet: Sheet, key: str) -> None:
    """Take the implementation of attention, which changes speed and the last digits."""
    if not sheet.has(key):
        return
    name = str(sheet.get(key))
    if name in ATTENTION:
        sheet.take(key, "model.attention", ATTENTION[name])
    else:
        sheet.ignore(key, "another implementation of the same attention")


def take_precision(sheet: Sheet, default: str | None = "float32") -> None:
    """Take the type of computation of `bf16` and `fp16`; the first has priority where it is on.

    `default` is the type where both are missing; None where it depends on the checkpoint. Where they are off it is
    float32.
    """
    for key, dtype in (("bf16", "bfloat16"), ("fp16", "float16")):
        if sheet.peek("training.precision") is None and sheet.on(key):
            sheet.take(key, "training.precision", dtype)
        elif sheet.peek("training.precision") is None and sheet.get(key) == "full":
            sheet.take(key, "training.precision", dtype, "trained weights are in float32 here")
        elif sheet.peek("training.precision") is None and sheet.get(key) == "auto":
            sheet.take(key, "training.precision", "auto", "bfloat16 on CUDA")
        else:
            sheet.ignore(key, "the other type has priority" if sheet.on(key) else "off")
    if sheet.peek("training.precision") is not None:
        return
    off = next((key for key in ("bf16", "fp16") if sheet.has(key)), None)
    if off is None and default is None:
        sheet.miss("bf16", "neither bf16 nor fp16: the checkpoint's type there; training.precision = auto here")
    else:
        chosen = default if off is None else "float32"
        sheet.set("training.precision", chosen)
        sheet.notes.append(f"precision: the file turns on neither bf16 nor fp16: training.precision = {chosen}")


def note_batch(sheet: Sheet, devices: int | None = None) -> None:
    """Say how many rows a step has."""
    rows, steps = sheet.peek("training.batch_size"), sheet.peek("training.gradient_accumulation") or 1
    if not isinstance(rows, int) or not isinstance(steps, int):
        return
    text = f"a step has {rows} x {steps} = {rows * steps} rows on one device"
    if devices and devices > 1:
        text += (
            f", and {rows * steps * devices} on the {devices} of their command: `peftlab launch --processes {devices}`"
        )
    else:
        text += ", and N times as many on N; the learning rate belongs to the number that it was chosen for"
    sheet.notes.append(text)


def take_packing(sheet: Sheet, key: str, default: bool = False) -> None:
    """Take packing, which fills sequences with several rows there; a step's rows are not the same number here."""
    if not sheet.on(key, default):
        sheet.ignore(key, "off")
        return
    sheet.take(key, "training.speed.packing", "auto", PACKING)
    sheet.notes.append(
        "packing: a step's sequences are each filled with several rows there, and one row each here; for as many "
        "tokens a step, raise training.batch_size by the number of mean rows in data.max_length"
    )


def take_cut(sheet: Sheet, part: str = "the end") -> None:
    """Set that rows which are too long are shortened, as there, and say that another part of them is cut."""
    sheet.set("data.long", "cut")
    sheet.notes.append(
        f"rows longer than data.max_length: {part} is cut there; here a prompt is shortened before its answer is "
        "(data.truncate)"
    )
