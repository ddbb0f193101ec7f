"""Saved weights: loaded in a fresh process they give the same logits, and what does not fit is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from peftlab.errors import StorageError
from peftlab.methods import Adapters, BitFit, LoRA
from peftlab.parameters.divided import divide, own_part, own_rows, places_of, replace_
from peftlab.parameters.trainable import trainable_parameters
from tests.apart import call_apart
from tests.methods.saved import CASES, PLAIN_PEFT, base_of, load_all, logits_of
from tests.methods.tiny import tiny_batch

CONTEXT = {"base_model": {"name": "tiny", "revision": None, "fingerprint": "abc"}, "labels": None}


def train_a_little(model) -> None:
    optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=0.02)
    for _ in range(2):
        model(**tiny_batch()).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Train and save every case here, load all in one fresh process; return both sides' logits."""
    folder, here = tmp_path_factory.mktemp("saved"), {}
    for label, (_, _, method) in CASES.items():
        torch.manual_seed(3)
        model, fresh = base_of(label, head_seed=5)
        model = method.apply(model, fresh)
        train_a_little(model.train())
        here[label] = logits_of(model)
        place = folder / label.replace(" ", "_")
        place.mkdir()
        method.save(model, place, CONTEXT)
    log = folder / "log"
    assert call_apart(load_all, folder, log=log) == 0, log.read_text()
    return folder, here, load_file(folder / "logits.safetensors")


@pytest.mark.parametrize("label", CASES)
def test_saved_weights_give_equal_logits_in_a_fresh_process(saved, label):
    _, here, there = saved
    assert_equal(there[label], here[label], label)


@pytest.mark.parametrize("label", [label for label in CASES if label.startswith(PLAIN_PEFT)])
def test_plain_peft_gives_equal_logits(saved, label):
    _, here, there = saved
    assert_equal(there[f"{label} by peft"], here[label], label)


def assert_equal(loaded, trained, label) -> None:
    # While it trains, the projection is computed for every row of the batch; it is stored for one.
    tolerance = 1e-6 if label == "prefix with projection" else 0.0
    torch.testing.assert_close(loaded, trained, rtol=0, atol=tolerance)


@pytest.mark.parametrize("label", CASES)
def test_only_safetensors_and_json_are_written(saved, label):
    folder, _, _ = saved
    written = {path.name for path in (folder / label.replace(" ", "_")).iterdir()}
    assert "peftlab_adapter.json" in written
    assert {Path(name).suffix for name in written} == {".safetensors", ".json"}


@pytest.mark.parametrize("label", [label for label in CASES if not label.startswith("full")])
def test_only_what_trained_and_whole_heads_are_written(saved, label):
    folder, _, _ = saved
    place = folder / label.replace(" ", "_")
    manifest = json.loads((place / "peftlab_adapter.json").read_text())
    (file,) = place.glob("*.safetensors")
    stored = load_file(file)
    assert {name: list(tensor.shape) for name, tensor in stored.items()} == manifest["tensors"]
    if label.startswith("bitfit"):
        assert sorted(stored) == manifest["trained"]


@pytest.fixture
def lora_folder(saved, tmp_path):
    return copy_of(saved[0] / "lora", tmp_path)


def copy_of(source: Path, target: Path) -> Path:
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def change(folder: Path, edit) -> None:
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def load_lora(folder, method=CASES["lora"][2], **arguments):
    return method.load(base_of("lora", head_seed=5)[0], folder, **arguments)


def test_a_missing_tensor_is_refused_by_name(lora_folder):
    change(lora_folder, lambda tensors: tensors.pop(sorted(tensors)[0]))
    with pytest.raises(StorageError, match=r"lacks base_model.model.model.layers.0.*lora_A.weight"):
        load_lora(lora_folder)


def test_an_extra_tensor_is_refused_by_name(lora_folder):
    change(lora_folder, lambda tensors: tensors.update(stranger=torch.zeros(1)))
    with pytest.raises(StorageError, match="has unknown stranger"):
        load_lora(lora_folder)


def test_a_wrong_shape_is_refused_by_name(lora_folder):
    def widen(tensors):
        tensors[sorted(tensors)[0]] = torch.zeros(3, 32)

    change(lora_folder, widen)
    with pytest.raises(StorageError, match=r"wrong shape of .*lora_A.weight \(3, 32\) \(the model's is \(2, 48\)\)"):
        load_lora(lora_folder)


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (LoRA(rank=2, alpha=32.0), r"alpha 16.0 \(here 32.0\)"),
        (LoRA(rank=2, rslora=True), "rslora False"),
        (Adapters(), "type 'lora' \\(here 'adapters'\\)"),
    ],
)
def test_another_method_is_refused(lora_folder, method, told):
    with pytest.raises(StorageError, match=told):
        load_lora(lora_folder, method)


def test_another_base_is_refused(lora_folder):
    other = {"base_model": {"name": "else", "fingerprint": "xyz"}}
    with pytest.raises(StorageError, match="was trained on tiny .*abc.*, not on else"):
        load_lora(lora_folder, context=other)


def test_a_moved_base_with_the_same_fingerprint_is_accepted(lora_folder):
    moved = {"base_model": {"name": "moved/tiny", "fingerprint": "abc"}}
    assert trainable_parameters(load_lora(lora_folder, context=moved))


def test_another_schema_is_refused(lora_folder):
    path = lora_folder / "peftlab_adapter.json"
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(StorageError, match="has schema 2, this peftlab reads 1"):
        load_lora(lora_folder)


@pytest.mark.parametrize(("name", "content"), [("peftlab_adapter.json", b"{"), ("adapter_model.safetensors", b"abc")])
def test_a_damaged_file_is_refused_in_one_line(lora_folder, name, content):
    (lora_folder / name).write_bytes(content)
    with pytest.raises(StorageError, match=name) as caught:
        load_lora(lora_folder)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(StorageError, match="has no peftlab_adapter.json, so peftlab did not save it"):
        load_lora(tmp_path)


def test_a_full_copy_of_another_size_is_refused(saved):
    folder, _, _ = saved
    with pytest.raises(StorageError, match="does not fit this model"):
        CASES["full"][2].load(base_of("bitfit added", head_seed=5)[0], folder / "full")


@pytest.fixture
def second_of_two():
    """The mesh of two processes of which this is the second; the first does not exist, and nothing is sent."""
    distributed.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
    yield init_device_mesh("cpu", (2,))
    distributed.destroy_process_group()


def test_a_full_copy_fills_a_base_of_which_each_process_has_rows(saved, second_of_two):
    folder, _, _ = saved
    model = base_of("full", head_seed=5)[0]
    for parameter, places in places_of(model.modules()).items():
        replace_(parameter, divide(torch.zeros_like(parameter), second_of_two), places)
    CASES["full"][2].load(model, folder / "full")
    stored = load_file(folder / "full" / "model.safetensors")
    found = {name: own_part(parameter) for name, parameter in model.named_parameters()}
    assert stored.keys() <= found.keys()
    for name, whole in stored.items():
        assert torch.equal(found[name], whole[own_rows(whole.shape, second_of_two)]), name


def test_loaded_parameters_train_as_before(saved):
    folder, _, _ = saved
    for label in ("bitfit added", "lora two-part classifier", "adapters classifier"):
        place = folder / label.replace(" ", "_")
        model = CASES[label][2].load(base_of(label, head_seed=5)[0], place)
        manifest = json.loads((place / "peftlab_adapter.json").read_text())
        assert sorted(trainable_parameters(model)) == manifest["trained"]


def test_a_full_disk_or_missing_right_is_a_storage_error(tmp_path):
    model = BitFit().apply(base_of("bitfit", head_seed=5)[0])
    (tmp_path / "adapter.safetensors").mkdir()
    with pytest.raises(StorageError, match="cannot be written"):
        BitFit().save(model, tmp_path, CONTEXT)
