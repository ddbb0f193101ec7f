"""Settings of a recipe's model, method, training and run that contradict one another."""

from __future__ import annotations

from peftlab.errors import UsageError
from peftlab.recipe.check import Check, Found, checks_into
from peftlab.recipe.checkpointing import OFFLOAD, asks_for_checkpointing
from peftlab.recipe.schema import Recipe
from peftlab.sizes import parse_budget

TRAINING_CHECKS: list[Check] = []
reads = checks_into(TRAINING_CHECKS)


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
    asked = asks_for_checkpointing(recipe.training.gradient_checkpointing)
    if asked and not recipe.method.supports_gradient_checkpointing:
        yield "training.gradient_checkpointing", f"does not work with {recipe.method.title}; set it to false"


@reads("training.gradient_checkpointing", "run.device")
def offload_needs_cuda(recipe: Recipe) -> Found:
    if recipe.training.gradient_checkpointing == OFFLOAD and recipe.run.device == "cpu":
        yield "training.gradient_checkpointing", "offload needs CUDA, and run.device is cpu; set it to true"


@reads(
    "training.optimizer_in_backward",
    "training.clip",
    "training.gradient_accumulation",
    "training.fit",
    "training.precision",
    "training.average",
)
def updates_in_the_backward_pass(recipe: Recipe) -> Found:
    training, field = recipe.training, "training.optimizer_in_backward"
    if not training.optimizer_in_backward:
        return
    if training.clip is not None:
        yield field, "updates before all gradients are there, so no norm can be clipped; set training.clip to null"
    if training.gradient_accumulation > 1:
        yield field, "a micro-batch's gradients are used at once; set training.gradient_accumulation to 1"
    if training.fit:
        yield field, "training.fit may split a step into micro-batches; set one of the two to false"
    if training.precision == "float16":
        yield field, "float16's scaler looks at all gradients before any update; set training.precision to bfloat16"
    if training.average.ema is not None:
        yield field, "training.average.ema is one update a step, and here each weight has its own; set it to null"


@reads("training.precision", "model.dtype")
def precision_below_weights(recipe: Recipe) -> Found:
    if recipe.training.precision == "float32" and recipe.model.dtype in ("bfloat16", "float16"):
        fault = f"float32 computation does not work with {recipe.model.dtype} weights"
        yield "training.precision", f"{fault}; set model.dtype to float32 or precision to auto"


@reads("training.optimizer", "run.device")
def optimizer_needs_cuda(recipe: Recipe) -> Found:
    if recipe.training.optimizer.needs_cuda and recipe.run.device == "cpu":
        yield "training.optimizer", "8-bit and paged states: needs CUDA, and run.device is cpu; use adamw or sgd"


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


@reads("training.average", "run.save_every", "run.keep_checkpoints", "run.keep")
def one_average_of_what_is_kept(recipe: Recipe) -> Found:
    average, run = recipe.training.average, recipe.run
    if average.last is None:
        return
    if average.ema is not None:
        yield "training.average", "set ema or last, not both"
    if run.save_every is None:
        yield "training.average.last", "is a mean of checkpoints; set run.save_every"
    elif run.keep_checkpoints < average.last:
        yield "training.average.last", f"needs run.keep_checkpoints of {average.last} at least"
    if run.keep != "last":
        yield "training.average.last", f"is a mean of the last checkpoints, and run.keep is {run.keep}; set it to last"
