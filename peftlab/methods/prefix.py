"""Prefix tuning (https://arxiv.org/abs/2101.00190) and prompt tuning (https://arxiv.org/abs/2104.08691).

Keys and values [P_k; K], [P_v; V] in every layer, or [P; E] at the input. Trains the P.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import Field

from peftlab.errors import MethodError
from peftlab.family_traits import (
    CLASSIFIES_IDS,
    ENCODERS,
    NO_PROMPTS,
    OWN_EMBEDDING_SIZE,
    PREFIX_ENCODERS,
    SEEKS_TOKENS,
)
from peftlab.methods.base import Method, Problems, Sizes
from peftlab.methods.peft_folder import WEIGHTS, base_tensors, stored_head, unwrap_heads, write_config
from peftlab.shapes import KeyValues, ModelShape, ParameterSite
from peftlab.tasks import TASKS, task_of

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel

ENCODER = "prompt_encoder"
TABLE = "embedding.weight"
LONGEST = 1 << 16


class Prefix(Method):
    """Trained virtual tokens before the input, through PEFT; the base stays as it is.

    It starts from tokens drawn at random: a prompt from their embeddings, a prefix from their keys and values
    (as the prefix paper advises: noise instead made SmolLM2-135M's loss 14.5 where the base's is 3.1). Only a
    prefix with a projection starts from noise.
    """

    title: ClassVar[str] = "prefix tuning"
    stores_new_tokens: ClassVar[bool] = False
    why_no_new_tokens: ClassVar[str] = "its PEFT folder has no place for them; use lora, adapters or bitfit"
    weights_file: ClassVar[str] = WEIGHTS
    refused_by_family: ClassVar[bool] = True

    type: Literal["prefix"] = "prefix"
    kind: Literal["prefix", "prompt"] = "prefix"
    """`prefix`: keys and values in every layer; `prompt`: embeddings at the input only."""
    length: int = Field(20, ge=1)
    """Number of virtual tokens P."""
    projection: bool = False
    """Train the prefix through a two-layer network, which is dropped when saved."""
    projection_dim: int | None = Field(None, ge=1)
    """Hidden width of that network (default: the model's hidden size)."""

    @property
    def form(self) -> str:
        return self.kind

    @property
    def virtual_tokens(self) -> int:
        return self.length

    @property
    def pads_prompts(self) -> bool:
        """A prompt comes before the padding, and its positions shift with it (measured with peft 0.21.2).

        A prefix is keys and values without such positions.
        """
        return self.kind == "prefix"

    @property
    def why_undivided(self) -> str:
        """peft looks up embeddings for a prompt by itself, and runs a projection on the process that saves."""
        if self.kind == "prompt":
            return "a prompt needs whole embeddings; set method.kind=prefix"
        return (
            "a projection is run by one process when it is saved; set method.projection=false"
            if self.projection
            else ""
        )

    @property
    def why_padded(self) -> str:
        """A prompt is put before the line once; a prefix is keys and values, which attention puts before each row."""
        return "a prompt is put before a line of the input, not before each row" if self.kind == "prompt" else ""

    @property
    def starts_as_base(self) -> bool:
        return False

    @property
    def supports_gradient_checkpointing(self) -> bool:
        """Checkpointing drops the attention cache that contains the prefix; a prompt needs none."""
        return self.kind == "prompt"

    def decays(self, name: str, shape: tuple[int, ...]) -> bool:
        """Return false for the virtual tokens and their network: decay would pull them to zero, which no token is."""
        return ENCODER not in name.split(".") and super().decays(name, shape)

    def multiplies(self, site: ParameterSite) -> bool:
        """The virtual tokens are a table; only the network that makes them multiplies."""
        return site.name != f"{ENCODER}.{TABLE}" and super().multiplies(site)

    def check_settings(self) -> Problems:
        problems = super().check_settings()
        if self.projection_dim is not None and not self.projection:
            problems.append(("projection_dim", "has no effect without `projection: true`"))
        if self.kind == "prompt" and self.projection:
            problems.append(("projection", "works with kind: prefix only; prompt tuning has no projection"))
        return problems

    def check_own(self, shape: ModelShape) -> Problems:
        if not (shape.hidden_size and shape.vocabulary):
            return [("type", "prefixes need a transformers language model")]
        if self.kind == "prefix" and TASKS[shape.task].encodes_prompt:
            fault = "peft 0.21 gives the same keys and values to several layers of a decoder that has an encoder"
            return [("kind", f"{fault}, and others to none; set `kind: prompt`")]
        if self.kind == "prefix":
            reason = _why_no_prefix(shape)
            return [("kind", f"{shape.model_type} {reason}; set `kind: prompt` or use lora")] if reason else []
        reason = _why_no_prompt(shape)
        return [("kind", reason)] if reason else []

    def added_parameters(self, shape: ModelShape) -> tuple[ParameterSite, ...]:
        width = _key_values(shape).width
        keys_and_values = 2 * shape.layers * width
        hidden = self.projection_dim or shape.hidden_size
        shapes: dict[str, tuple[int, ...]]
        if self.kind == "prompt":
            shapes = {TABLE: (self.length, _embedding_width(shape))}
        elif not self.projection:
            shapes = {TABLE: (self.length, keys_and_values)}
        else:
            shapes = {
                TABLE: (self.length, width),
                "transform.0.weight": (hidden, width),
                "transform.0.bias": (hidden,),
                "transform.2.weight": (keys_and_values, hidden),
                "transform.2.bias": (keys_and_values,),
            }
        return tuple(ParameterSite(f"{ENCODER}.{name}", size, "adapter") for name, size in shapes.items())

    def sizes(self, shape: ModelShape) -> Sizes:
        """Return lengths that leave half of the model's positions to the rows.

        A projection's parameters hardly depend on the length: its size is its hidden width, up to four times the
        model's.
        """
        if self.projection:
            return Sizes("projection_dim", range(1, 4 * shape.hidden_size + 1))
        return Sizes("length", range(1, (shape.positions or LONGEST) // 2 + 1))

    def stored_sites(self, shape: ModelShape) -> list[ParameterSite]:
        return stored_head(super().stored_sites(shape), shape)

    def insert(self, model: nn.Module, shape: ModelShape) -> nn.Module:
        from peft import get_peft_model

        base = cast("PreTrainedModel", model)
        start = self._start(base, shape)
        wrapped = get_peft_model(base, self._peft_config(shape))
        unwrap_heads(wrapped)
        if start is not None:
            own = _encoder(wrapped).embedding.weight.data
            if own.shape != start.shape:
                raise MethodError(
                    f"method.kind: the model's keys and values are {start.shape[1]} numbers a token, not the "
                    f"{own.shape[1]} that its sizes say; set `kind: prompt` or use lora"
                )
            own.copy_(start)
        # PEFT looks for the first parameter with as many rows as the vocabulary, which others may have as well.
        wrapped.word_embeddings = base.get_input_embeddings()
        if self.kind == "prompt" and TASKS[shape.task].generates and not TASKS[shape.task].encodes_prompt:
            wrapped.register_forward_hook(_drop_prompt_positions)
        return wrapped

    def _start(self, model: PreTrainedModel, shape: ModelShape) -> Tensor | None:
        """Return the first keys and values, or None where PEFT sets the start or there are no weights."""
        import torch

        from peftlab.nn.prefix import read_keys_and_values

        if self.kind == "prompt" or self.projection or next(model.parameters()).is_meta:
            return None
        ids = torch.randint(0, shape.vocabulary, (self.length,))
        projections = [site.name for site in shape.linears if site.role in ("key", "value")]
        return read_keys_and_values(model, ids, projections)

    def _peft_config(self, shape: ModelShape) -> PeftConfig:
        from peft import PrefixTuningConfig, PromptTuningConfig

        shared: dict[str, Any] = {
            "task_type": TASKS[shape.task].peft_type,
            "num_virtual_tokens": self.length,
            "num_layers": shape.layers,
            "num_attention_heads": _key_values(shape).heads,
        }
        if self.kind == "prompt":
            width = _embedding_width(shape)
            shared["num_transformer_submodules"] = 1  # else peft makes as many tokens for a decoder, and trains none
            return PromptTuningConfig(prompt_tuning_init="SAMPLE_VOCAB", token_dim=width, **shared)
        return PrefixTuningConfig(
            token_dim=_key_values(shape).width,
            prefix_projection=self.projection,
            encoder_hidden_size=self.projection_dim or shape.hidden_size,
            **shared,
        )

    def without_training_parts(self) -> Prefix:
        return self.model_copy(update={"projection": False, "projection_dim": None})

    def stored_tensors(self, model: nn.Module) -> dict[str, Tensor]:
        wrapped = cast("PeftModel", model)
        encoder = _encoder(wrapped)
        own = encoder.embedding.weight
        if self.projection and hasattr(encoder, "transform"):
            own = wrapped.get_prompt_embedding_to_save("default")
        return {"prompt_embeddings": own, **base_tensors(wrapped, task_of(model))}

    def save(self, model: nn.Module, folder: Path, context: dict[str, Any]) -> None:
        super().save(model, folder, context)
        write_config(cast("PeftModel", model), folder, task_of(model), context)


def _key_values(shape: ModelShape) -> KeyValues:
    """Return the sizes of a layer's keys: those of the model's own cache, else what its configuration says."""
    return shape.passage.key_values or KeyValues(shape.kv_heads, shape.kv_width // shape.kv_heads)


def _why_no_prefix(shape: ModelShape) -> str:
    """Return why this model can take no keys and values before its own; empty if it can."""
    if shape.passage.no_prefix:
        return shape.passage.no_prefix
    without_cache = shape.model_type in ENCODERS or shape.passage.known and shape.passage.key_values is None
    if without_cache and shape.model_type not in PREFIX_ENCODERS:
        return "takes no keys and values from outside"
    return "" if _key_values(shape).width else "has keys and values of unknown sizes"


def _why_no_prompt(shape: ModelShape) -> str:
    """Return why this model can take no embeddings before its own; empty if it can."""
    if shape.model_type in OWN_EMBEDDING_SIZE:
        return f"PEFT does not find the embedding of a {shape.model_type} model; set `kind: prefix` or use lora"
    if shape.model_type in NO_PROMPTS:
        return f"{shape.model_type} {NO_PROMPTS[shape.model_type]}; use lora"
    table = SEEKS_TOKENS.get(shape.model_type)
    if table and any(table in site.name.split(".") for site in shape.parameters):
        return f"{shape.model_type} looks for the token of each embedding, and those of a prompt have none; use lora"
    if not shape.passage.takes_embeddings:
        return f"{shape.model_type} reads token ids, and takes no embeddings in their place; use lora"
    if shape.model_type in CLASSIFIES_IDS and not TASKS[shape.task].generates:
        return f"a classifier of {shape.model_type} reads token ids, and takes no embeddings in their place; use lora"
    if not TASKS[shape.task].reads_last_token or shape.model_type in ENCODERS:
        return ""
    return "a decoder's classifier cannot find the last token after a prompt; set `kind: prefix` or use lora"


def _encoder(wrapped: PeftModel) -> Any:
    """Return PEFT's module of the virtual tokens: `embedding`, and with a projection `transform`."""
    return wrapped.prompt_encoder["default"]


def _embedding_width(shape: ModelShape) -> int:
    """Return the width of the input embeddings, which a few models (OPT-350M) project to the hidden size."""
    tables = (site.shape for site in shape.parameters if site.kind == "embedding")
    return next((size[1] for size in tables if len(size) == 2 and size[0] == shape.vocabulary), shape.hidden_size)


def _drop_prompt_positions(wrapped: PeftModel, inputs: tuple[Any, ...], output: Any) -> Any:
    """Forward hook: leave out the logits at the prompt, so that they align with the tokens as without it."""
    if output.logits.dim() == 3:  # else a loss has selected its positions before the head already
        output.logits = output.logits[:, wrapped.active_peft_config.num_virtual_tokens :]
    return output
