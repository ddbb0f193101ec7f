"""QLoRA (https://arxiv.org/abs/2305.14314): LoRA beside weights stored in 4 or 8 bits. Trains A and B."""

from __future__ import annotations

from typing import ClassVar, Literal

from peftlab.methods.lora import LoRA


class QLoRA(LoRA):
    """LoRA on a base that bitsandbytes holds quantised."""

    title: ClassVar[str] = "QLoRA"

    type: Literal["qlora"] = "qlora"
    quantization: Literal["nf4", "fp4", "int8"] = "nf4"
    """Format of the frozen weights."""
    double_quantization: bool = True
    """Quantise the 4-bit scales too: 4.127 bits a parameter instead of 4.5."""
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type that weights are unpacked to; auto is bfloat16 on CUDA and float32 on the CPU."""

    @property
    def base_format(self) -> str:
        return self.quantization
