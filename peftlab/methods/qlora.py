"""QLoRA (https://arxiv.org/abs/2305.14314): LoRA beside weights stored in 4 or 8 bits. Trains A and B."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast, get_args

from peftlab.methods.base import Problems
from peftlab.methods.lora import LoRA
from peftlab.methods.new_tokens import copy_with_rows, with_rows_of
from peftlab.patterns import matching
from peftlab.shapes import ModelShape

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import nn


# Weights that share one scale in the 4-bit formats.
BLOCK = 64


class QLoRA(LoRA):
    """LoRA on a base that bitsandbytes stores quantised.

    The model loader quantises the base before `apply`; norms, embeddings, the head and a mixture's fused expert
    weights keep their type.
    """

    title: ClassVar[str] = "QLoRA"

    type: Literal["qlora"] = "qlora"  # type: ignore[assignment]  # the tag of a recipe's section, no part of LoRA's
    quantization: Literal["nf4", "fp4", "int8"] = "nf4"
    """Format of the frozen weights."""
    double_quantization: bool = True
    """Quantise the 4-bit scales too: 4.127 bits a parameter instead of 4.5."""
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type that weights are unpacked to; auto is the type of computation (`training.precision`)."""

    @classmethod
    def variants(cls) -> dict[str, Self]:
        """Return one for each format of the frozen weights: a machine may be able to compute with some only."""
        formats = get_args(cls.model_fields["quantization"].annotation)
        return {base_format: cls.model_validate({"quantization": base_format}) for base_format in formats}

    @property
    def form(self) -> str:
        return f"{self.type}-{self.quantization}"

    @property
    def base_format(self) -> str:
        return self.quantization

    @property
    def batches_prompts(self) -> bool:
        """LLM.int8() computes in 16 bits the input columns that have a large value in any row of the batch."""
        return self.base_format != "int8"

    @property
    def base_storage(self) -> dict[str, Any]:
        double, dtype = self.double_quantization, self.compute_dtype
        return {"base_format": self.base_format, "double_quantization": double, "compute_dtype": dtype}

    def merge(self, model: nn.Module, base: nn.Module | None = None) -> nn.Module:
        """Return a plain, unquantised model: the updates are added to the weights that the packed ones stand for.

        So it computes what was trained, but takes the memory of plain weights. With `base`, the checkpoint's own
        weights, it is another model: one without the error of quantisation, to which the updates were fitted.
        """
        from peftlab.models.quantize import dequantize_
        from peftlab.parameters.shape import shape_of
        from peftlab.parameters.trainable import named_parameters

        trained = named_parameters(model)
        plain: nn.Module
        if base is None:
            plain = dequantize_(cast("PeftModel", copy_with_rows(model)).unload())
        else:
            plain = with_rows_of(model, base)
        lora = LoRA(**self.model_dump(include=LoRA.model_fields.keys() - {"type"}))
        twin = cast("PeftModel", lora.insert(plain, shape_of(plain)))
        for name, parameter in named_parameters(twin).items():
            if ".lora_" in name or trained[name].requires_grad:
                parameter.data = trained[name].detach().clone()
        return twin.merge_and_unload()

    def notes(self, shape: ModelShape) -> list[str]:
        heads = {site.name for site in shape.linears if site.role == "head"}
        kept = [site.name for site in shape.linears if site.name in shape.passage.read - heads]
        if not kept:
            return super().notes(shape)
        line = f"method.quantization: {len(kept)} dense layers keep model.dtype, because the model reads their weights"
        return [*super().notes(shape), f"{line} without calling them: {kept[0]}{', ...' if len(kept) > 1 else ''}"]

    def _fate_of_experts(self, count: int, share: float) -> str:
        return (
            f"the experts' {count:,} parameters ({share:.0%} of the model) are not dense layers: they stay in "
            "model.dtype, are not quantised and get no update"
        )

    def check_settings(self) -> Problems:
        problems = super().check_settings()
        if self.init not in ("default", "gaussian"):
            message = f"{self.init} needs the base's plain weights; with qlora use default or gaussian"
            problems.append(("init", message))
        if self.quantization == "int8" and self.compute_dtype != "auto":
            message = "belongs to nf4 and fp4; int8 computes in the type of its input: leave it auto"
            problems.append(("compute_dtype", message))
        if self.quantization == "int8" and self.dora:
            message = "fails on an int8 base in bitsandbytes; use nf4 or fp4, or plain LoRA"
            problems.append(("dora", message))
        return problems

    def check_own(self, shape: ModelShape) -> Problems:
        problems = super().check_own(shape)
        uneven = [site for site in self.targets_of(shape) if site.n_in % BLOCK]
        if self.dora and self.quantization != "int8" and uneven:
            # bitsandbytes 0.50 unpacks such rows wrongly on the CPU, and PEFT takes the norms from them.
            message = f"needs inputs in multiples of {BLOCK}, and {uneven[0].name} has {uneven[0].n_in}; leave it off"
            problems.append(("dora", message))
        plain = shape.passage.read
        quantised = [f"{one.name}.weight" for one in shape.linears if one.role != "head" and one.name not in plain]
        for pattern in self.unfreeze:
            stuck = matching([pattern], quantised)
            if stuck:
                problems.append(("unfreeze", f"{pattern!r} matches {stuck[0]}, which is quantised and cannot train"))
        return problems
