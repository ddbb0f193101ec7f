"""Memory on a CUDA device: its own numbers, snapshots, running out of it, and the plan against the allocator."""

from __future__ import annotations

import pickle

import pytest
import torch

from peftlab.errors import OutOfMemoryError
from peftlab.memory.constants import cuda_constants
from peftlab.methods import METHODS, Full
from peftlab.models.recompute import recompute_activations
from peftlab.recipe.schema import Recipe
from peftlab.runs.directory import RunDirectory
from peftlab.runs.display import NoDisplay
from peftlab.runs.run import train
from tests.runs.recipes import short_sections
from tests.training.small import tiny_llama

pytestmark = pytest.mark.gpu


def cuda_recipe(method: str, output, training=None, **run) -> Recipe:
    sections = short_sections(method, output, **(training or {"steps": 2}))
    sections["run"] |= {"device": "cuda", "plan": "report", **run}
    return Recipe.model_validate(sections)


@pytest.mark.parametrize("method", METHODS)
def test_every_phase_has_the_allocators_peaks_and_the_plan_is_near_them(tmp_path, method):
    memory = train(cuda_recipe(method, tmp_path / "run"), display=NoDisplay()).memory
    measured, predicted = memory["measured"], memory["predicted"]
    assert measured.device == "cuda" and measured.device_phases.keys() == measured.phases.keys()
    for name, phase in measured.device_phases.items():
        assert phase.reserved_bytes >= phase.allocated_bytes == measured.phases[name] > 0
        assert phase.used_bytes > phase.outside_bytes > 0
    assert measured.peak_bytes == max(measured.phases.values())
    # The tracker sees tensors; of the allocator's peak the workspaces of cuBLAS are most of the rest.
    workspaces = cuda_constants(torch.cuda.get_device_capability()).cublas_workspaces
    assert abs(measured.residual_bytes - workspaces) < 0.1 * measured.peak_bytes
    assert predicted.phases["steady_step"] == pytest.approx(measured.phases["steady_step"], rel=0.05)
    assert memory["process"].device_phases["training"].allocated_bytes > 0


def test_layers_inputs_that_wait_on_the_host_free_the_device_and_change_no_gradient():
    """Between the passes, the device keeps none of eight layers' inputs. Attention's sums have no fixed order on CUDA;
    tests/models/test_recompute.py compares bits."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8, "max_position_embeddings": 1024}
    model = Full().apply(tiny_llama(**sizes)).cuda().train()
    ids = torch.randint(1, 60, (8, 512), generator=torch.Generator().manual_seed(0)).cuda()
    kept, gradients = [], []
    for wanted in (True, "offload"):
        assert recompute_activations(model, wanted).layers == 8
        model.zero_grad(set_to_none=True)
        before = torch.cuda.memory_allocated()
        loss = model(input_ids=ids, labels=ids).loss
        kept.append(torch.cuda.memory_allocated() - before)
        loss.backward()
        gradients.append([parameter.grad.cpu() for parameter in model.parameters()])
        del loss
    assert kept[0] - kept[1] == pytest.approx(8 * ids.numel() * 256 * 4, rel=0.05)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


def test_a_snapshot_opens_in_pytorchs_viewer(tmp_path):
    from torch.cuda._memory_viz import trace_plot

    train(cuda_recipe("lora", tmp_path / "run", memory_snapshot=True), display=NoDisplay())
    file = RunDirectory.open(tmp_path / "run").memory_snapshot
    # Written by this very test, so reading the pickle runs nobody else's code.
    with file.open("rb") as stream:
        snapshot = pickle.load(stream)
    assert snapshot["segments"] and any(trace for trace in snapshot["device_traces"])
    assert "<script" in trace_plot(snapshot)


def test_running_out_of_memory_is_told_without_a_traceback_and_with_what_lived(tmp_path):
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(200 * 2**20 / total)
    try:
        with pytest.raises(OutOfMemoryError) as error:
            train(cuda_recipe("full", tmp_path / "run", {"steps": 2, "batch_size": 64}), display=NoDisplay())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    what, allocated, _ = str(error.value).splitlines()
    assert what.startswith("out of memory in phase ") and allocated.startswith("allocated then: ")
    result = RunDirectory.open(tmp_path / "run").read_result()
    assert result.status == "out_of_memory" and result.memory["out_of_memory"].peak_bytes > 0
