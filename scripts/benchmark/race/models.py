"""The peers' models: transformers' own, with peft's method or a few lines by hand, and the job's first weights."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from race.job import Job


def build(job: Job) -> nn.Module:
    """Return the model on its device with the job's method and first weights; what does not train is frozen."""
    model = METHODS[job.method](job)
    load_start(model, job)
    if job.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.to(job.device)


def base(job: Job, **settings: Any) -> Any:
    from transformers import AutoModelForCausalLM

    # A model that trains as a whole is in float32, as peftlab keeps what trains; frozen weights are in the precision.
    dtype = torch.float32 if job.method == "full" else getattr(torch, job.precision)
    return AutoModelForCausalLM.from_pretrained(job.model, dtype=dtype, **settings)


def full(job: Job) -> nn.Module:
    return base(job)


def lora(job: Job) -> nn.Module:
    return with_lora(base(job), job)


def qlora(job: Job) -> nn.Module:
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, job.precision),
    )
    model = base(job, quantization_config=config, device_map={"": job.device})
    return with_lora(model.requires_grad_(False), job)


def with_lora(model: Any, job: Job) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=job.fields["rank"],
        lora_alpha=job.fields["alpha"],
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def prefix(job: Job) -> nn.Module:
    from peft import PrefixTuningConfig, get_peft_model

    return get_peft_model(base(job), PrefixTuningConfig(num_virtual_tokens=job.fields["length"], task_type="CAUSAL_LM"))


def bitfit(job: Job) -> nn.Module:
    """Return the model with only its biases trained; those that it lacks and the first weights have are added."""
    model = base(job).requires_grad_(False)
    for name, start in load_file(job.start).items():
        module = model.get_submodule(name.removesuffix(".bias"))
        module.bias = nn.Parameter(torch.zeros_like(start))
    return model


def adapters(job: Job) -> nn.Module:
    """Return the model with a bottleneck on the output of each module that the job's first weights name."""
    model = base(job).requires_grad_(False)
    start = load_file(job.start)
    for name, weight in start.items():
        if name.endswith(".adapter.down.weight"):
            parent, _, leaf = name.removesuffix(".adapter.down.weight").rpartition(".")
            wrapped = Adapted(model.get_submodule(f"{parent}.{leaf}"), weight.shape[1], weight.shape[0])
            setattr(model.get_submodule(parent), leaf, wrapped)
    return model


class Adapted(nn.Module):
    """y + up(gelu(down(y))) of a module's output y."""

    def __init__(self, base_layer: nn.Module, width: int, bottleneck: int):
        super().__init__()
        self.base_layer = base_layer
        self.adapter = nn.ModuleDict({"down": nn.Linear(width, bottleneck), "up": nn.Linear(bottleneck, width)})

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.base_layer(*args, **kwargs)
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = hidden + self.adapter["up"](nn.functional.gelu(self.adapter["down"](hidden)))
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


METHODS = {"full": full, "lora": lora, "qlora": qlora, "prefix": prefix, "bitfit": bitfit, "adapters": adapters}


def load_start(model: nn.Module, job: Job) -> None:
    """Copy the job's first weights into what trains. Raises ValueError where names or sizes differ."""
    start = load_file(job.start)
    own = {name: one for name, one in model.named_parameters() if one.requires_grad}
    if set(own) != set(start):
        raise ValueError(f"other parameters train here: {sorted(set(own) ^ set(start))[:4]}")
    with torch.no_grad():
        for name, one in own.items():
            one.copy_(start[name])
