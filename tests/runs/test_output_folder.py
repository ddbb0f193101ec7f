"""A folder that a command writes is there whole or not at all, and an error says which file is at fault."""

from __future__ import annotations

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from peftlab.errors import StorageError, UsageError
from peftlab.runs.output_folder import refuse_output, temporary_folder


def test_a_damaged_source_is_not_called_a_full_disk(tmp_path):
    save_file({"a": torch.zeros(64)}, source := tmp_path / "adapter.safetensors")
    source.write_bytes(source.read_bytes()[:100])
    with (
        pytest.raises(
            StorageError, match="out: not written: the weights that it is made of cannot be read: .*verify RUN"
        ),
        temporary_folder(tmp_path / "out"),
    ):
        load_file(source)
    assert list(tmp_path.iterdir()) == [source]


def test_a_disk_that_is_full_is_named(tmp_path):
    with (
        pytest.raises(StorageError, match="out: cannot be written: .*No space left.*; free some space"),
        temporary_folder(tmp_path / "out"),
    ):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["file/out", "file/a/b/out"])
def test_a_place_below_a_file_is_named_and_no_disk_is_blamed(place, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="file is a file, not a folder; choose another place"):
        refuse_output(tmp_path / place, tmp_path / "run", False, "merge.json", "a merged model")
    with pytest.raises(StorageError, match="(Not a directory|File exists); check the path"):
        temporary_folder(tmp_path / place).__enter__()
