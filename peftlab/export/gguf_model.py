"""A plain transformers folder as one GGUF file, tensor by tensor, and a LoRA as a GGUF adapter."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedConfig

from peftlab.errors import MissingRequirementError, ModelError
from peftlab.export.gguf_families import Family, as_float, describe, find_family
from peftlab.export.gguf_tokenizer import write_tokenizer
from peftlab.models.config import one_line_errors
from peftlab.models.reference import Reference

SUFFIXES = (".weight", ".bias")
# GGUF's types of matrices by the name of `--dtype`; what has one dimension stays in float32, as llama.cpp wants.
TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
FILE_TYPES = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "bfloat16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
BLOCK = 32


def need_gguf() -> Any:
    """Return the `gguf` package. Raises MissingRequirementError."""
    try:
        import gguf
    except ImportError:
        raise MissingRequirementError("GGUF needs the package gguf: pip install gguf") from None
    return gguf


def write_model(
    folder: Path, path: Path, dtype: str, name: str, *, chats: bool = False
) -> tuple[dict[str, int], list[str]]:
    """Write a transformers folder to a GGUF file; return how many tensors have which type, and notes.

    `chats` says that the model reads chats. Raises ModelError for a family, a tokenizer or a tensor that the format
    cannot have.
    """
    gguf = need_gguf()
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    family = find_family(config)
    writer = gguf.GGUFWriter(path, family.arch, use_temp_file=True)
    writer.add_type("model")
    writer.add_name(name)
    for field, value in describe(config).items():
        getattr(writer, f"add_{field}")(value)
    family.write(writer, config)
    writer.add_file_type(getattr(gguf.LlamaFileType, FILE_TYPES[dtype]))
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    notes = write_tokenizer(writer, tokenizer, config.vocab_size, _stop_ids(folder), chats=chats)
    counts: Counter[str] = Counter()
    for own, tensor in read_tensors(folder):
        laid = family.lay_out(named := rename(own, config, family), as_float(tensor), config)
        counts[_add_tensor(writer, named, laid, TYPES[dtype])] += 1
    _close(writer)
    return dict(counts), notes


def _stop_ids(folder: Path) -> list[int]:
    try:
        ends = GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id
    except OSError:
        return []
    return ends if isinstance(ends, list) else [] if ends is None else [ends]


def read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a folder of safetensors, one at a time."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in sorted(opened.keys()):
                yield name, opened.get_tensor(name)


def rename(name: str, config: PreTrainedConfig, family: Family) -> str:
    """Return the name that a tensor has in GGUF. Raises ModelError for one that has none there."""
    found = _name_map(family.arch, config.num_hidden_layers).get_name(name, try_suffixes=SUFFIXES)
    if found is None:
        raise ModelError(f"GGUF: {config.model_type} models have no place for the tensor {name}")
    return found


@functools.cache
def _name_map(arch: str, layers: int) -> Any:
    gguf = need_gguf()
    return gguf.get_tensor_name_map(next(one for one, name in gguf.MODEL_ARCH_NAMES.items() if name == arch), layers)


def _add_tensor(writer: Any, name: str, tensor: Tensor, kind: str) -> str:
    """Add a tensor in the type that it can have, and return that type."""
    gguf = need_gguf()
    if tensor.dim() < 2 or "norm" in name:
        kind = "F32"
    elif kind == "Q8_0" and tensor.shape[-1] % BLOCK:
        kind = "F16"
    values = tensor.numpy()
    wanted = getattr(gguf.GGMLQuantizationType, kind)
    if kind == "F32":
        writer.add_tensor(name, np.ascontiguousarray(values, dtype=np.float32))
    elif kind == "F16":
        writer.add_tensor(name, values.astype(np.float16))
    else:
        packed = gguf.quants.quantize(values, wanted)
        writer.add_tensor(name, packed, raw_dtype=wanted)
    return kind


def _close(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_adapter(
    updates: Mapping[str, tuple[Tensor, Tensor]], config: PreTrainedConfig, path: Path, *, alpha: float, name: str
) -> int:
    """Write the matrices (A, B) of updates, by the name of their weight, as a GGUF adapter; return their number.

    llama.cpp adds alpha/rank·B·A, with the rank of each pair. Raises ModelError.
    """
    gguf, family = need_gguf(), find_family(config)
    writer = gguf.GGUFWriter(path, family.arch, use_temp_file=False)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    writer.add_name(name)
    for own, (down, up) in updates.items():
        named = rename(own, config, family)
        writer.add_tensor(f"{named}.lora_a", as_float(down).contiguous().numpy())
        # Only the rows of outputs are in another order, and these are B's.
        writer.add_tensor(f"{named}.lora_b", family.lay_out(named, as_float(up), config).contiguous().numpy())
    _close(writer)
    return len(updates)


def other_sizes(path: Path, config: PreTrainedConfig) -> dict[str, tuple[Any, Any]]:
    """Return the sizes that a reader of a GGUF file finds otherwise than `config` has them, by name: (there, here).

    Raises ModelError for a file that cannot be read.
    """
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    reference = Reference(label=str(path), folder=path.parent, gguf_file=path.name)
    with one_line_errors(reference, "read"):
        read = load_gguf_checkpoint(path)["config"]
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    both = {name: (read[name], getattr(config, name, None)) for name in (*names, "vocab_size") if name in read}
    wrong = {name: (there, here) for name, (there, here) in both.items() if there != here}
    here = getattr(config, "rms_norm_eps", 0.0)
    eps = read.get("rms_norm_eps", here)
    return wrong | ({} if np.isclose(eps, here) else {"rms_norm_eps": (eps, here)})


def default_type(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "bfloat16", torch.float16: "float16"}.get(dtype, "float32")
