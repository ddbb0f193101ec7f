"""A checkpoint with one wrong bit, byte, file or path is named and skipped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import pytest

from peftlab.checkpoint.manifest import Manifest, read_manifest, render, verify
from peftlab.checkpoint.store import find_latest
from peftlab.errors import StorageError

FILES = ["MANIFEST.json", "optimizer.bin", "progress.json", "weights/adapter.bin"]


def one_line_fault(folder) -> str:
    with pytest.raises(StorageError) as caught:
        verify(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_in_any_byte_is_seen(root, name):
    path = root / "step-000020" / name
    whole = path.read_bytes()
    for index, byte in enumerate(whole):
        path.write_bytes(whole[:index] + bytes([byte ^ 1 << index % 8]) + whole[index + 1 :])
        one_line_fault(root / "step-000020")
    path.write_bytes(whole)
    assert verify(root / "step-000020").step == 20


@pytest.mark.parametrize("name", FILES)
def test_every_truncation_and_extension_is_seen(root, name):
    path = root / "step-000020" / name
    whole = path.read_bytes()
    for changed in (*(whole[:size] for size in range(len(whole))), whole + b"\n", whole + b"\0"):
        path.write_bytes(changed)
        one_line_fault(root / "step-000020")


@pytest.mark.parametrize("name", FILES)
def test_the_older_checkpoint_is_taken_and_the_damaged_one_named(root, name):
    path = root / "step-000020" / name
    path.write_bytes(path.read_bytes()[:-1])
    latest, faults = find_latest(root)
    assert latest.step == 10
    assert len(faults) == 1 and str(root / "step-000020") in faults[0] and "\n" not in faults[0]
    path.unlink()
    latest, faults = find_latest(root)
    assert latest.step == 10 and len(faults) == 1


def test_a_file_too_many_is_a_fault(root):
    (root / "step-000020" / "weights" / "extra.bin").touch()
    assert "extra.bin: does not belong" in one_line_fault(root / "step-000020")


def test_a_link_is_a_fault_even_to_the_same_content(root, tmp_path):
    folder = root / "step-000020"
    shutil.move(folder / "optimizer.bin", tmp_path / "optimizer.bin")
    (folder / "optimizer.bin").symlink_to(tmp_path / "optimizer.bin")
    assert "optimizer.bin: is a symbolic link" in one_line_fault(folder)
    shutil.move(root / "step-000010", tmp_path / "step-000010")
    (root / "step-000010").symlink_to(tmp_path / "step-000010")
    assert "it is a symbolic link" in one_line_fault(root / "step-000010")
    os.mkfifo(tmp_path / "step-000010" / "pipe")
    assert "pipe: is a symbolic link or special file" in one_line_fault(tmp_path / "step-000010")


def test_a_renamed_folder_is_no_checkpoint_of_the_step_in_its_name(root):
    os.rename(root / "step-000010", root / "step-000030")
    latest, faults = find_latest(root)
    assert latest.step == 20
    assert "is not the checkpoint of step 30: its MANIFEST.json says step 10" in faults[0]


def forge(folder, **changes):
    """Write a manifest whose own hash is right."""
    content = json.loads((folder / "MANIFEST.json").read_text())
    content.pop("sha256")
    content |= changes
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    (folder / "MANIFEST.json").write_text(json.dumps(content | {"sha256": digest}, indent=2) + "\n")


@pytest.mark.parametrize("name", ["../step-000010/optimizer.bin", "/etc/hostname", "a/../b", "", ".", "a//b", "a\0"])
def test_a_path_that_leaves_the_folder_is_refused_before_it_is_read(root, name):
    folder = root / "step-000020"
    forge(folder, files={name: {"size": 0, "sha256": ""}})
    with pytest.raises(StorageError, match="is not a path inside the checkpoint"):
        read_manifest(folder)


def test_an_unknown_schema_is_reported_with_its_remedy(root):
    forge(root / "step-000020", schema=2)
    assert "has schema 2, but this version of peftlab reads schema 1; resume with" in one_line_fault(
        root / "step-000020"
    )


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "{}", '{"schema": true}', '{"schema": 1}', "[" * 100_000, '{"schema": ' + "1" * 5000 + "}"],
    ids=lambda text: text[:20],
)
def test_a_manifest_of_something_else_is_one_line(root, text):
    (root / "step-000020" / "MANIFEST.json").write_text(text)
    one_line_fault(root / "step-000020")
    assert find_latest(root)[0].step == 10


def test_facts_come_back_exactly(tmp_path):
    facts = {"loss": 0.1 + 0.2, "best": float("inf"), "none": None, "nested": {"ä": [1, "\ud800", True]}}
    (tmp_path / "MANIFEST.json").write_text(render(Manifest(step=0, files={}, facts=facts)))
    assert verify(tmp_path).facts == facts
