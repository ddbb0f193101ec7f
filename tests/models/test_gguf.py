"""A GGUF file is parsed once for tokenizer, configuration and weights, and again when it changed."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from peftlab.models.gguf import as_plain_array, forget_parsed, parsed_once
from peftlab.models.reference import Reference


@pytest.fixture
def reference(tmp_path):
    write(tmp_path / "small.gguf", "first")
    yield Reference(label="small", folder=tmp_path, gguf_file="small.gguf")
    forget_parsed()


def write(path, name):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def name_of(reader):
    return reader.get_field("general.name").contents()


def test_a_file_is_parsed_once_until_it_changes_or_is_forgotten(reference):
    plain, path = gguf.GGUFReader, reference.folder / reference.gguf_file
    with parsed_once(reference):
        first = gguf.GGUFReader(path)
    with parsed_once(reference):
        assert gguf.GGUFReader(str(path)) is first and name_of(first) == "first"
        assert gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2) is gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
        path.unlink()
        write(path, "other")
        other = gguf.GGUFReader(path)
        assert other is not first and name_of(other) == "other"
        forget_parsed()
        assert gguf.GGUFReader(path) is not other
        assert gguf.GGUFReader(path, "c") is not gguf.GGUFReader(path, "c")
    assert gguf.GGUFReader is plain and gguf.GGUFReader(path) is not gguf.GGUFReader(path)


def test_a_plain_array_has_the_fields_and_tensors_of_the_library_s_own_reader(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "tensors.gguf", "llama")
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "a", "ß"])
    writer.add_float32("number", 0.5)
    writer.add_tensor("weight", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    own, plain = (kind(tmp_path / "tensors.gguf") for kind in (gguf.GGUFReader, as_plain_array(gguf.GGUFReader)))
    assert {name: field.contents() for name, field in plain.fields.items()} == {
        name: field.contents() for name, field in own.fields.items()
    }
    (wanted,), (found,) = own.tensors, plain.tensors
    assert found.name == wanted.name and type(found.data) is np.ndarray and np.array_equal(found.data, wanted.data)


def test_other_models_change_nothing(tmp_path):
    plain = gguf.GGUFReader
    with parsed_once(Reference(label="folder", folder=tmp_path)):
        assert gguf.GGUFReader is plain
