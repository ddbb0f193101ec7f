"""Plans for CUDA against real steps on the CPU that compute with CUDA's types and branches of the libraries."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from peftlab.memory.blueprint import build_blueprint
from peftlab.memory.constants import CUBLAS_THREADS, DETERMINISTIC_WORKSPACE, MIB, NCCL_BUFFERS, cuda_constants
from peftlab.memory.fit import with_settings
from peftlab.memory.predict import predict
from peftlab.memory.private import PACKED_ROWS, cuda_scratch
from peftlab.memory.strategies import STRATEGIES
from peftlab.memory.trace import trace_whole
from peftlab.recipe.schema import Recipe
from tests.memory.real import METHODS, PLAIN_STEP, tiny_recipe, track_as_cuda, work_of, write_model
from tests.sampling import sampled

CUDA = torch.device("cuda")
HOPPER = (9, 0)
METHOD_CASES = {
    **{name: {"type": name, **settings} for name, settings in METHODS.items()},
    "fp4": {"type": "qlora", "rank": 4, "quantization": "fp4"},
    "int8": {"type": "qlora", "rank": 4, "quantization": "int8"},
    "biases": {"type": "qlora", "rank": 4, "unfreeze": ["*bias"]},
}


def plan_of(recipe: Recipe, ragged: bool):
    blueprint = build_blueprint(recipe, CUDA)
    return blueprint, work_of(blueprint, ragged)


@pytest.mark.parametrize(
    "checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["kept", "checkpointed"]
)
@pytest.mark.parametrize("family", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", sampled(list(METHOD_CASES), ["full", "prefix", "qlora", "int8"]))
def test_the_tensors_of_a_cuda_plan_are_those_of_a_step_with_cudas_choices(tmp_path, family, case, checkpointing):
    method = METHOD_CASES[case]
    if (checkpointing and case == "prefix") or (family == "llama" and case == "biases"):
        pytest.skip("they exclude each other, or there are no biases")
    if (family, case) == ("llama", "bitfit"):
        method = method | {"add_missing": True}
    recipe = tiny_recipe(write_model(tmp_path, family), method, 40, batch_size=4, gradient_checkpointing=checkpointing)
    blueprint, work = plan_of(recipe, ragged=True)
    planned, tracked = predict(blueprint, work, capability=HOPPER), track_as_cuda(recipe, ragged=True).report()
    workspaces = cuda_constants(HOPPER).cublas_workspaces
    for phase, bytes_ in tracked.phases.items():
        assert planned.phases[phase] - workspaces == pytest.approx(bytes_, rel=0.02), phase


def operation(name: str):
    import bitsandbytes  # noqa: F401  # registers the operations

    return getattr(torch.ops.bitsandbytes, name).default


def test_the_scratch_space_of_8_bit_products_is_counted_by_hand():
    """bitsandbytes 0.50: a product of 100 rows and 30 columns in int32, and in float16 if bfloat16 is asked for."""
    weight = torch.empty(30, 20, dtype=torch.int8)
    for dtype, bytes_ in ((torch.float16, 4), (torch.bfloat16, 4 + 2)):
        rows = torch.empty(100, 20, dtype=dtype)
        arguments = (rows, rows.to(torch.int8), weight, torch.empty(100), torch.empty(30), None)
        assert cuda_scratch(operation("int8_mixed_scaled_mm"), arguments) == 100 * 30 * bytes_
    halves = torch.empty(100, 20, dtype=torch.float16)
    assert cuda_scratch(operation("int8_vectorwise_quant"), (halves,)) == 100 * 20 * (2 + 1)


def test_many_rows_unpack_a_whole_4_bit_weight_and_few_do_not():
    """A weight of 128 x 64 in the input's type, and its 128 scales twice in float32."""
    packed, scales = torch.empty(4096, 1, dtype=torch.uint8), torch.empty(128)
    for rows, bytes_ in ((PACKED_ROWS, 0), (PACKED_ROWS + 1, 128 * 64 * 2 + 2 * 128 * 4)):
        inputs = torch.empty(rows, 64, dtype=torch.bfloat16)
        assert cuda_scratch(operation("gemm_4bit"), (inputs, packed, (128, 64), scales, 64, "nf4")) == bytes_


def test_an_evaluation_of_a_4_bit_model_has_room_for_the_unpacked_weight(tmp_path):
    """Of a wide layer nothing else is as large: 2 bytes for each of its weights, in one operation at a time."""
    folder = write_model(tmp_path, "llama", hidden_size=512, intermediate_size=4096)
    recipe = tiny_recipe(folder, METHOD_CASES["qlora"], batch_size=1)
    blueprint, work = plan_of(recipe, ragged=False)
    few = replace(work, evaluation_length=PACKED_ROWS)
    many = replace(work, evaluation_length=PACKED_ROWS + 1)
    more = predict(blueprint, many).phases["evaluation"] - predict(blueprint, few).phases["evaluation"]
    assert more > 0.8 * 4096 * 512 * 2


def test_both_threads_have_a_workspace_and_saving_has_them_still(tmp_path):
    """Oracle: 32 MiB each on Hopper (cuBLAS's documentation), in every phase after the first product."""
    recipe = tiny_recipe(write_model(tmp_path, "llama"), {"type": "lora"}, batch_size=2)
    blueprint, work = plan_of(recipe, ragged=False)
    planned, tensors = predict(blueprint, work, capability=HOPPER), predict(blueprint, replace(work, cuda=False))
    assert CUBLAS_THREADS * 32 * MIB <= planned.phases["save"] < 64 * MIB + tensors.peak_bytes
    assert planned.phases["load"] == tensors.phases["load"]
    ampere = predict(blueprint, work, capability=(8, 0)).categories["workspace"]
    exact = build_blueprint(with_settings(recipe, {"run.deterministic": True}), CUDA)
    more = predict(exact, work, capability=(8, 0)).categories["workspace"] - ampere
    assert more == CUBLAS_THREADS * (DETERMINISTIC_WORKSPACE - cuda_constants((8, 0)).cublas_workspace)


def test_several_devices_need_buffers_of_nccl_which_are_said_not_to_be_measured(tmp_path):
    recipe = tiny_recipe(write_model(tmp_path, "llama"), {"type": "lora"}, batch_size=2)
    blueprint, work = plan_of(recipe, ragged=False)
    alone, pair = (predict(blueprint, work, devices=count, strategy=STRATEGIES["ddp"]) for count in (1, 2))
    assert "nccl_buffers" not in alone.overheads and pair.overheads["nccl_buffers"] == NCCL_BUFFERS
    assert any("not yet measured" in note for note in pair.notes)


def test_free_segments_of_a_trace_are_no_slack(tmp_path):
    """The largest tensors of a step come and go: less than a tenth of what passes cannot be released.

    Speed-ups let a quarter less pass, in smaller pieces: what remains in segments is then about as many bytes.
    """
    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "vocab_size": 32000, "max_position_embeddings": 1024}
    recipe = tiny_recipe(write_model(tmp_path, "llama", **sizes), {"type": "lora"}, 512, batch_size=4)
    shares, passing = [], []
    for settings in (PLAIN_STEP, {}):
        blueprint, work = plan_of(with_settings(recipe, settings), ragged=False)
        shares.append(trace_whole(blueprint.fake, work).slack)
        categories = predict(blueprint, work).categories
        passing.append(sum(bytes_ for name, bytes_ in categories.items() if "weights" not in name))
    assert 0 <= shares[0] < 0.1
    assert 0 <= shares[1] * passing[1] < 1.25 * shares[0] * passing[0]
