"""One of two processes that load models in parts and compare them with the whole ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from peftlab.memory.probe import Probe
from peftlab.models.load import LoadedModel, load_model
from peftlab.parameters.divided import own_part, whole
from peftlab.parameters.gathering import stop_gathering
from peftlab.parameters.trainable import is_quantized, named_parameters
from peftlab.recipe.schema import Model

IDS = torch.tensor([[5, 6, 7, 8, 9]])


def act(number: int, rendezvous: str, cases: dict[str, tuple[dict, str]], folder: Path) -> None:
    """Load each case whole and in parts; write what was found of all, as process `number`."""
    os.environ |= {"RANK": str(number), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=number, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    found = {name: compare(Model(**section), form, mesh) for name, (section, form) in cases.items()}
    torch.save(found, folder / f"{number}.pt")
    distributed.destroy_process_group()


def compare(section: Model, form: str, mesh: Any) -> dict[str, Any]:
    one, _ = loaded(section, form, None)
    two, peak = loaded(section, form, mesh)
    theirs, ours = named_parameters(one.model), named_parameters(two.model)
    equal = theirs.keys() == ours.keys() and all(
        torch.equal(whole(ours[name].detach()), value.data) and ours[name].dtype == value.dtype
        for name, value in theirs.items()
    )
    buffers = {name: value for name, value in one.model.named_buffers()}
    other = dict(two.model.named_buffers())
    return {
        "equal": equal,
        "fresh": one.fresh == two.fresh,
        "buffers": buffers.keys() == other.keys()
        and all(torch.equal(other[name], one) for name, one in buffers.items()),
        "tied": count_tied(one.model) == count_tied(two.model),
        "packing": all(same_packing(ours[name], one) for name, one in theirs.items() if is_quantized(one)),
        "divided": all(isinstance(one, DTensor) for one in ours.values() if one.dim()),
        "logits": torch.equal(logits(one.model), logits(two.model)),
        "parts_after": all(isinstance(one, DTensor) for one in two.model.parameters() if one.dim()),
        "whole_bytes": sum(one.nbytes for one in theirs.values()),
        "own_bytes": sum(own_part(one).untyped_storage().nbytes() for one in ours.values()),
        "peak_bytes": peak,
        "hooks": count_hooks(two.model, one.model),
    }


def loaded(section: Model, form: str, mesh: Any) -> tuple[LoadedModel, int]:
    torch.manual_seed(3)
    probe = Probe(torch.device("cpu"))
    with probe.alone("load"):
        found = load_model(
            section, base_format=form, double_quantization=form != "fp4", seen=probe.ledger.adopt_base, mesh=mesh
        )
    return found, probe.report().phases["load"]


def same_packing(ours: Any, theirs: Any) -> bool:
    """Return whether two packed weights have the same scales, and all else that says how they are packed."""
    one, two = (vars(packed)["quant_state"].as_dict() for packed in (ours, theirs))
    return one.keys() == two.keys() and all(
        torch.equal(value, two[key]) if isinstance(value, torch.Tensor) else value == two[key]
        for key, value in one.items()
    )


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    more = {"decoder_input_ids": IDS[:, :2]} if model.config.is_encoder_decoder else {}
    answers = model.generate(IDS, max_new_tokens=3, do_sample=False) if model.can_generate() else IDS
    return torch.cat([model.eval()(input_ids=IDS, **more).logits.flatten(), answers.flatten().float()])


def count_tied(model: nn.Module) -> int:
    return len(list(model.named_parameters(remove_duplicate=False))) - len(list(model.parameters()))


def count_hooks(model: nn.Module, plain: nn.Module) -> int:
    """Return how many forward hooks a model has more than a plain one when gathering has stopped."""
    stop_gathering(model)
    return sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.modules()) - sum(
        len(one._forward_hooks) + len(one._forward_pre_hooks) for one in plain.modules()
    )
