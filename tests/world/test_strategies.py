"""What a world does with gradients and values: alone, and between two processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import distributed, nn

from peftlab.world import hardware
from peftlab.world.ddp import Ddp
from peftlab.world.open import open_world

ROWS = ([[1.0, 2.0]], [[3.0, 5.0]])


def act(number: int, environment: dict[str, str], folder: Path) -> None:
    """Be one of two processes, and write what its world does."""
    os.environ.update(environment | {"RANK": str(number), "LOCAL_RANK": str(number)})
    hardware.free_bytes = lambda device: 1000
    world = open_world("cpu")
    torch.manual_seed(0)
    model = world.prepare(nn.Linear(2, 1, bias=False))
    (parameter,) = model.parameters()
    with world.accumulating(model):
        (model(torch.tensor(ROWS[number])).sum() * world.gradient_factor).backward()
    own = parameter.grad.tolist()
    parameter.grad = None
    (model(torch.tensor(ROWS[number])).sum() * world.gradient_factor).backward()
    found = {
        "strategy": world.strategy,
        "place": [world.process, world.processes, world.is_main],
        "gathered": world.gather([f"a{number}", f"b{number}"]),
        "sum": world.sum(torch.tensor([1.0, 2.0 + number])).tolist(),
        "highest": world.highest(7 - number),
        "free": world.free_bytes(),
        "copies": (weight := parameter.detach()).to(world.device) is not weight,
        "trackers": len(world.open_trackers([], "run", folder)),
        "own": own,
        "exchanged": parameter.grad.tolist(),
    }
    found["without_device"] = exchange_beside_nccl(world, 7 - number)
    world.wait()
    world.close()
    (folder / f"{number}.json").write_text(json.dumps(found))


def exchange_beside_nccl(world: Ddp, number: int) -> list:
    """Ask twice for the highest number with a backend that exchanges on devices only; return answers, new groups."""
    groups, new_group = [], distributed.new_group
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "get_backend", lambda: "nccl")
        patch.setattr(distributed, "new_group", lambda **options: groups.append(options) or new_group(**options))
        beside = Ddp(world._accelerator)
        return [beside.highest(number), beside.highest(-number), groups]


def test_after_an_error_nccl_is_cut_off_and_not_waited_for(monkeypatch):
    """Its orderly end waits for the other processes, which wait in an exchange that this one will not join."""
    world, calls = Ddp.__new__(Ddp), []
    world.device = torch.device("cuda", 0)
    backend = SimpleNamespace(abort=lambda: calls.append("abort"))
    monkeypatch.setattr(distributed, "get_backend", lambda: "nccl")
    group = SimpleNamespace(_get_backend=lambda device: backend)
    monkeypatch.setattr(distributed.distributed_c10d, "_get_default_group", lambda: group)
    destroyed = lambda: calls.append("destroy")  # noqa: E731
    world._accelerator = SimpleNamespace(state=SimpleNamespace(destroy_process_group=destroyed))
    world.abort()
    monkeypatch.setattr(distributed, "get_backend", lambda: "gloo")
    world.abort()
    assert calls == ["abort", "destroy"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What two processes of one launch found."""
    folder = tmp_path_factory.mktemp("pair")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=act, args=(number, shared, folder)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    return [json.loads((folder / f"{number}.json").read_text()) for number in range(2)]


def test_two_processes_are_data_parallel_and_the_first_is_the_main_one(pair):
    assert [found["strategy"] for found in pair] == ["ddp", "ddp"]
    assert [found["place"] for found in pair] == [[0, 2, True], [1, 2, False]]


def test_the_exchanged_gradient_is_the_sum_over_processes(pair):
    """By hand: the gradient of a sum of products is the sum of both processes' rows."""
    assert [found["exchanged"] for found in pair] == [[[4.0, 7.0]]] * 2


def test_nothing_is_exchanged_while_accumulating(pair):
    assert [found["own"] for found in pair] == [[[2.0, 4.0]], [[6.0, 10.0]]], "each its own rows, times two processes"


def test_values_are_the_same_on_all_processes(pair):
    for found in pair:
        assert found["gathered"] == ["a0", "b0", "a1", "b1"]
        assert found["sum"] == [2.0, 5.0] and found["highest"] == 7


def test_beside_nccl_processes_agree_through_one_group_on_their_hosts(pair):
    for found in pair:
        assert found["without_device"] == [7, -6, [{"backend": "gloo"}]]


def test_what_is_on_the_cpu_is_not_copied_for_its_process(pair):
    """accelerate calls the CPU of each process by its number, and tensors that are moved to `cpu:1` are copied."""
    assert [found["copies"] for found in pair] == [False, False]


def test_processes_on_one_host_share_its_memory(pair):
    assert [found["free"] for found in pair] == [500, 500]


def test_a_process_alone_exchanges_nothing(monkeypatch):
    monkeypatch.setattr(hardware, "free_bytes", lambda device: 1000)
    world, model = open_world("cpu"), nn.Linear(2, 1, bias=False)
    assert world.prepare(model) is model
    with world.accumulating(model):
        (model(torch.tensor(ROWS[0])).sum() * world.gradient_factor).backward()
    assert model.weight.grad.tolist() == ROWS[0]
    assert world.gather(["a", "b"]) == ["a", "b"] and world.highest(3) == 3 and world.free_bytes() == 1000
    assert world.sum(torch.tensor(2.0)).item() == 2.0


def test_how_an_update_is_computed_is_not_of_a_restored_state():
    """A checkpoint of one process has `fused`, which divided weights beside whole ones cannot be updated with."""
    parameters = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    for parameter in parameters:
        parameter.grad = torch.ones(2)
    saved, own = (torch.optim.AdamW([one], lr=2.0 - number) for number, one in enumerate(parameters))
    saved.param_groups[0]["fused"] = True
    own.param_groups[0] |= {"fused": False, "foreach": False}
    saved.step()
    open_world("cpu").set_states(own, saved.state_dict())
    (group,) = own.param_groups
    assert (group["fused"], group["foreach"], group["lr"]) == (False, False, 2.0)
    assert torch.equal(own.state[parameters[1]]["exp_avg"], saved.state[parameters[0]]["exp_avg"])


def test_a_seed_repeats_every_generator():
    import random

    import numpy as np

    def draw():
        open_world("cpu").seed(3)
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert draw() == draw()


@pytest.mark.parametrize(("precision", "computed"), [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)])
def test_autocast_computes_in_the_precision(precision, computed):
    with open_world("cpu").autocast(precision):
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == computed
