"""What others ask of a method without a model: its title, its base, and how training and generation treat it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field

from peftlab.shapes import ParameterSite


class Sizes(NamedTuple):
    """The sizes that a method can have on one model: the values of one field, the smallest first.

    `graded` is true for steps of one scale (ranks, widths, layers), false for a choice among a few.
    """

    field: str
    values: Sequence[Any]
    graded: bool = True


class Prompting(NamedTuple):
    """How generation must treat prompts: a plain model's may be padded at the left, and lose no positions.

    `reserved` positions of the model are the method's own. Prompts that are not `batched` are answered one by one.
    """

    padded: bool = True
    reserved: int = 0
    batched: bool = True


class MethodTraits(BaseModel):
    """The fields that every method has, and its traits, which are those of a method that does nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, serialize_by_alias=True)

    title: ClassVar[str]
    mergeable: ClassVar[bool] = False
    suggested_when_memory_is_short: ClassVar[bool] = False
    stores_new_tokens: ClassVar[bool] = True
    why_no_new_tokens: ClassVar[str] = ""
    weights_file: ClassVar[str] = "adapter.safetensors"
    stores: ClassVar[Literal["trainable", "all"]] = "trainable"
    pattern_fields: ClassVar[tuple[str, ...]] = ("unfreeze", "freeze")
    refused_by_family: ClassVar[bool] = False
    """Whether what this method cannot do follows from a model's type alone, whatever its sizes."""

    type: str
    from_: str | None = Field(None, alias="from", min_length=1)
    """A run, or a folder of PEFT or transformers, whose trained weights this training starts from."""
    unfreeze: tuple[str, ...] = ()
    """Patterns over parameter names that train as well (`classifier`, `embed_tokens`, `*norm*`)."""
    freeze: tuple[str, ...] = ()
    """Patterns over parameter names that stay frozen, applied last; a new head trains nevertheless."""

    @classmethod
    def variants(cls) -> dict[str, Self]:
        """Return the method with its defaults, by a label; several where what it needs of a machine differs."""
        return {"default": cls()}  # type: ignore[call-arg]  # `type` has a default in every registered method

    @property
    def form(self) -> str:
        """What the table of families calls this method: its type, and its form where models differ by it."""
        return self.type

    @property
    def learning_rate_factor(self) -> float | None:
        """The learning rate to try first, as a multiple of full fine-tuning's; None where no rule is known."""
        return None

    @property
    def base_format(self) -> str:
        """How the frozen base is stored: `plain`, `nf4`, `fp4` or `int8`."""
        return "plain"

    @property
    def base_storage(self) -> dict[str, Any]:
        """How the base must be stored, as keyword arguments of `models.load.load_model`."""
        return {"base_format": self.base_format}

    @property
    def keeps_base(self) -> bool:
        """Whether the frozen weights keep their values when the method is applied, so that runs can share them."""
        return self.stores == "trainable"

    @property
    def supports_gradient_checkpointing(self) -> bool:
        """Whether a layer computed again in the backward pass gives what it gave before."""
        return True

    @property
    def virtual_tokens(self) -> int:
        """Positions that the method takes beside a row's own tokens."""
        return 0

    @property
    def pads_prompts(self) -> bool:
        """Whether prompts may be padded at the left without a change of their answers."""
        return True

    @property
    def batches_prompts(self) -> bool:
        """Whether a prompt's answer is the same beside others in a batch."""
        return True

    @property
    def why_undivided(self) -> str:
        """Why processes cannot have a part of each weight, and what to change; empty where they can."""
        return ""

    @property
    def reads_base(self) -> bool:
        """Whether inserting it reads weights of the base, so that they must be whole then."""
        return False

    @property
    def why_padded(self) -> str:
        """Why rows cannot be laid end to end in one line of the model's input; empty where they can."""
        return ""

    @property
    def prompting(self) -> Prompting:
        """How generation must treat prompts with this method."""
        return Prompting(self.pads_prompts, self.virtual_tokens, self.batches_prompts)

    @property
    def starts_as_base(self) -> bool:
        """Whether the output equals the base model's before the first step."""
        return True

    def decays(self, name: str, shape: tuple[int, ...]) -> bool:
        """Return whether weight decay applies to a trained parameter: to matrices, not to biases and norms."""
        return len(shape) >= 2

    def multiplies(self, site: ParameterSite) -> bool:
        """Return whether each token is multiplied by this parameter, a matrix (a table is only looked up)."""
        return len(site.shape) == 2 and site.kind != "embedding"
