"""What is saved and loaded again, here and in a fresh process."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from peftlab.methods import Adapters, BitFit, Full, LoRA, Method, Prefix, QLoRA
from peftlab.models.quantize import quantize_
from tests.methods.tiny import head_names, tiny_batch, tiny_model

CLASSIFY = "sequence-classification"
PLAIN_PEFT = ("lora", "qlora", "prefix")
CASES: dict[str, tuple[str, str, Method]] = {
    "full": ("gpt2", "causal-lm", Full()),
    "full, tied, last layer": ("llama", "causal-lm", Full(layers=1, unfreeze=("*norm*",))),
    "full classifier": ("bert", CLASSIFY, Full(layers=1)),
    "lora": ("llama", "causal-lm", LoRA(rank=2)),
    "lora on Conv1D with tied embeddings": ("gpt2", "causal-lm", LoRA(rank=2, unfreeze=("wte", "ln_f"))),
    "lora with dora, rslora and biases": ("qwen2", "causal-lm", LoRA(rank=2, dora=True, rslora=True, bias="all")),
    "lora with its biases": ("phi", "causal-lm", LoRA(rank=2, bias="lora-only", unfreeze=("lm_head",))),
    "lora pissa": ("opt", "causal-lm", LoRA(rank=2, init="pissa")),
    "lora olora": ("gpt_neox", "causal-lm", LoRA(rank=2, init="olora")),
    "lora orthogonal": ("mistral", "causal-lm", LoRA(rank=2, init="orthogonal", targets="attention")),
    "lora classifier": ("llama", CLASSIFY, LoRA(rank=2, unfreeze=("norm",))),
    "lora two-part classifier": ("distilbert", CLASSIFY, LoRA(rank=2, freeze=("layer.0",))),
    "lora module classifier": ("roberta", CLASSIFY, LoRA(rank=2)),
    "qlora nf4": ("llama", "causal-lm", QLoRA(rank=2, unfreeze=("*norm*",))),
    "qlora int8 classifier": ("bert", CLASSIFY, QLoRA(rank=2, quantization="int8")),
    "adapters": ("gemma", "causal-lm", Adapters(bottleneck=3, init="near-identity", train_norms=True)),
    "adapters classifier": ("bert", CLASSIFY, Adapters(placement="parallel", freeze=("0",))),
    "prefix": ("gemma", "causal-lm", Prefix(length=3, unfreeze=("embed_tokens",))),
    "prefix with projection": ("gpt2", "causal-lm", Prefix(length=3, projection=True)),
    "prefix classifier": ("roberta", CLASSIFY, Prefix(length=3)),
    "prefix decoder classifier": ("opt", CLASSIFY, Prefix(length=3)),
    "prefix prompt": ("llama", "causal-lm", Prefix(kind="prompt", length=3)),
    "prefix prompt classifier": ("distilbert", CLASSIFY, Prefix(kind="prompt", length=3)),
    "bitfit": ("gpt2", "causal-lm", BitFit()),
    "bitfit added": ("llama", "causal-lm", BitFit(add_missing=True, norms=True)),
    "bitfit classifier": ("bert", CLASSIFY, BitFit(terms="subset")),
}


def base_of(label: str, head_seed: int):
    """Return a case's base model, the same every time but for its new head, and the new head's names."""
    family, task, method = CASES[label]
    model = tiny_model(family, task)
    fresh = head_names(model)
    torch.manual_seed(head_seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in fresh:
                parameter.normal_(std=0.3)
    if method.base_format != "plain":
        quantize_(model, method.base_format)
    return model, fresh


@torch.no_grad()
def logits_of(model) -> torch.Tensor:
    return model.eval()(**tiny_batch()).logits.contiguous()


def load_all(folder: Path) -> None:
    """Load every saved case, with peftlab and where PEFT knows it with PEFT alone, and write the logits."""
    from peft import PeftModel

    logits = {}
    for label, (_, _, method) in CASES.items():
        place = folder / label.replace(" ", "_")
        logits[label] = logits_of(method.load(base_of(label, head_seed=6)[0], place))
        if label.startswith(PLAIN_PEFT):
            loaded = logits_of(PeftModel.from_pretrained(base_of(label, head_seed=7)[0], place))
            logits[f"{label} by peft"] = loaded[:, -logits[label].shape[1] :].contiguous()
    save_file(logits, folder / "logits.safetensors")
