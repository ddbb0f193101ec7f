"""State goes through safetensors and JSON and comes back as it was: every type, every bit."""

from __future__ import annotations

import json
import math
import struct
import tempfile
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peftlab.checkpoint.tensors import load_state, save_state
from peftlab.errors import StorageError

TORCH_TYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]
NUMPY_TYPES = ["bool", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "c8"]


def bits(value):
    """Return something that is equal for two values only if they are the same type to the last bit."""
    if isinstance(value, torch.Tensor):
        return ("tensor", value.dtype, tuple(value.shape), raw_bytes(value))
    if isinstance(value, np.ndarray | np.generic):
        return (type(value), value.dtype, value.shape, value.tobytes())
    if isinstance(value, dict):
        return (type(value), [(bits(k), bits(v)) for k, v in value.items()])
    if isinstance(value, list | tuple):
        return (type(value), [bits(item) for item in value])
    if isinstance(value, float):
        return (type(value), struct.pack("d", value))
    return (type(value), value)


def raw_bytes(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).tolist())


def round_trip(state, folder: Path):
    save_state(folder, "state", state)
    return load_state(folder, "state")


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    dtype = draw(st.sampled_from(TORCH_TYPES))
    size = math.prod(shape) * dtype.itemsize
    content = bytearray(draw(st.binary(min_size=size, max_size=size)))
    if dtype is torch.bool:
        content = bytearray(byte & 1 for byte in content)
    tensor = torch.frombuffer(content, dtype=torch.uint8).view(dtype) if size else torch.empty(0, dtype=dtype)
    tensor = tensor.reshape(shape)
    return tensor.transpose(0, 1) if tensor.ndim > 1 and draw(st.booleans()) else tensor


@st.composite
def arrays(draw):
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    dtype = np.dtype(draw(st.sampled_from(NUMPY_TYPES)))
    size = math.prod(shape) * dtype.itemsize
    content = draw(st.binary(min_size=size, max_size=size))
    array = np.frombuffer(bytes(b & 1 for b in content) if dtype.kind == "b" else content, dtype).reshape(shape)
    return array[()] if draw(st.booleans()) else array


PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.integers(-(2**200), 2**200))
KEYS = st.one_of(PLAIN, st.tuples(st.integers(), st.text()))
STATES = st.recursive(
    st.one_of(PLAIN, tensors(), arrays()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.tuples(inner, inner), st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STATES)
def test_any_state_comes_back_to_the_bit(state):
    with tempfile.TemporaryDirectory() as folder:
        assert bits(round_trip(state, Path(folder))) == bits(state)


@pytest.mark.parametrize(
    "state",
    [
        {1: "int key", "1": "string key", 1.5: 0, None: 0, (1, "a"): ()},
        [math.nan, -math.nan, struct.unpack(">d", bytes.fromhex("7ff8000000abcdef"))[0], math.inf, -math.inf, -0.0],
        [1, 1.0, True, 5e-324, 0.1 + 0.2, 2**63, -(2**63) - 1, 10**5000],
        {"dict": [], "tensor": "0"},
        [[], (), {}, "", [()], ({},)],
        {"tensor": torch.tensor(3.0, dtype=torch.bfloat16), "empty": torch.empty(0, 5, dtype=torch.int8)},
        [np.float64(0.1), np.float32(0.1), np.array(7), np.zeros((0, 2), "u4")],
    ],
    ids=lambda state: str(type(state).__name__),
)
def test_the_corners_come_back_to_the_bit(state, tmp_path):
    assert bits(round_trip(state, tmp_path)) == bits(state)


def test_views_of_one_memory_and_the_same_tensor_twice(tmp_path):
    whole = torch.arange(12.0)
    code = torch.arange(256, dtype=torch.float32)
    state = {
        "whole": whole,
        "part": whole[3:6],
        "strided": whole[::2],
        "code": [code, code],
        "bias": torch.nn.Parameter(whole),
    }
    loaded = round_trip(state, tmp_path)
    assert bits({**loaded, "bias": whole}) == bits({**state, "bias": whole})
    assert torch.equal(loaded["bias"], whole)
    assert loaded["code"][0] is loaded["code"][1]
    loaded["whole"].zero_()
    assert loaded["part"].tolist() == [3, 4, 5]


def test_a_loaded_state_does_not_depend_on_its_file(tmp_path):
    loaded = round_trip(torch.arange(100_000), tmp_path)
    with (tmp_path / "state.safetensors").open("r+b") as file:
        file.write(bytes((tmp_path / "state.safetensors").stat().st_size))
    assert torch.equal(loaded, torch.arange(100_000))


@pytest.mark.parametrize(
    "value",
    [
        OrderedDict(),
        Fraction(1, 3),
        {1, 2},
        b"bytes",
        lambda: None,
        np.array(["text"]),
        np.array([object()]),
        np.zeros(2, ">f4"),
        np.zeros(2, "c16"),
        torch.zeros(2, dtype=torch.complex128),
        torch.eye(2).to_sparse(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_exact_form_is_refused_with_its_place(value, tmp_path):
    with pytest.raises(TypeError, match=r"optimizer\['state'\]\[0\]: .* cannot be saved exactly"):
        save_state(tmp_path, "optimizer", {"state": [value]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"schema": 2, "state": 1}', '{"schema": 1}', "\xff", *(
        json.dumps({"schema": 1, "state": state})
        for state in ({"tensor": "9"}, {"unknown": 1}, {"a": 1, "b": 2}, {}, {"float": "00"}, {"dict": [1]}, {"int": 1})
    )],
)  # fmt: skip
def test_a_damaged_structure_is_one_line(text, tmp_path):
    save_state(tmp_path, "state", [torch.zeros(1)])
    (tmp_path / "state.json").write_text(text, encoding="latin-1")
    with pytest.raises(StorageError) as caught:
        load_state(tmp_path, "state")
    assert "\n" not in str(caught.value) and str(tmp_path / "state") in str(caught.value)


def test_missing_and_truncated_tensors_are_one_line(tmp_path):
    save_state(tmp_path, "state", [torch.zeros(9)])
    path = tmp_path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StorageError, match="state: cannot be read"):
        load_state(tmp_path, "state")
    path.unlink()
    with pytest.raises(StorageError, match="state: cannot be read"):
        load_state(tmp_path, "state")


def build_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 80), torch.nn.Tanh(), torch.nn.Linear(80, 1)).to(torch.bfloat16)


def step(model, optimizer, schedule, count: int) -> None:
    for number in range(count):
        torch.manual_seed(number)
        model(torch.randn(4, 64, dtype=torch.bfloat16)).square().mean().backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def build_bitsandbytes(parameters):
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(parameters, lr=0.01, min_8bit_size=1)


OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    "adamw_amsgrad": lambda parameters: torch.optim.AdamW(parameters, lr=torch.tensor(0.01), amsgrad=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    "adamw_8bit": build_bitsandbytes,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("schedule_name", ["linear", "cosine", "constant_with_warmup"])
def test_an_optimizer_and_its_schedule_go_on_as_if_nothing_had_happened(name, schedule_name, tmp_path):
    from transformers import get_scheduler

    def build():
        model = build_model()
        optimizer = OPTIMIZERS[name](model.parameters())
        return model, optimizer, get_scheduler(schedule_name, optimizer, 3, 10)

    model, optimizer, schedule = build()
    step(model, optimizer, schedule, 4)
    state = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    assert state["optimizer"]["state"], "the optimiser has made its state"
    loaded = round_trip(state, tmp_path)
    assert bits(loaded) == bits(state)
    resumed_model, resumed_optimizer, resumed_schedule = build()
    resumed_model.load_state_dict(model.state_dict())
    resumed_optimizer.load_state_dict(loaded["optimizer"])
    resumed_schedule.load_state_dict(loaded["schedule"])
    step(model, optimizer, schedule, 4)
    step(resumed_model, resumed_optimizer, resumed_schedule, 4)
    assert bits(dict(resumed_model.state_dict())) == bits(dict(model.state_dict()))
    assert bits(resumed_optimizer.state_dict()) == bits(optimizer.state_dict())


def test_a_gradient_scaler_comes_back(tmp_path):
    state = torch.amp.GradScaler("cpu", init_scale=1024.0).state_dict()
    assert bits(round_trip(state, tmp_path)) == bits(state)
