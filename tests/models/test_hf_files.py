"""Files of tensors: whatever is cut, changed or missing is found, and nothing is unpickled."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from models import hf_files, weights
from tests.models.fakes import DTYPES, Config, llama_like, numbers, write_as_hf


@given(st.lists(st.sampled_from([1, 3, 16, 17, 33, 65]), min_size=3, max_size=3), st.permutations(range(3)), st.sampled_from(DTYPES))
@example([65, 65, 1], [1, 0, 2], DTYPES[0])
@example([17, 65, 65], [2, 1, 0], DTYPES[1])
def test_a_copy_of_a_transpose_is_a_copy(shape: list[int], order: list[int], dtype: np.dtype):
    source = np.random.default_rng(0).standard_normal(shape).astype(dtype).transpose(order)
    for some in (source, source[::-1], source[..., ::2]):
        into = np.full(some.shape, np.nan, np.float32)
        hf_files.copy(into, some)
        np.testing.assert_array_equal(into, some.astype(np.float32))


@pytest.mark.parametrize(("first", "second"), [((0, 8), (4, 12)), ((0, 4), (8, 12)), ((0, 8), (8, 12)), ((4, 8), (8, 12))])
def test_tensors_lie_side_by_side(tmp_path, first: tuple[int, int], second: tuple[int, int]):
    """Over one another, apart, of another size, or after a gap."""
    tensors = {"a": first, "b": second}
    header = {name: {"dtype": "F32", "shape": [1], "data_offsets": place} for name, place in tensors.items()}
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(12))
    with pytest.raises(ValueError, match=r"model\.safetensors: corrupt: [ab] is F32\[1\] in bytes"):
        hf_files.read_tensors(tmp_path)


def test_any_cut_of_a_file_is_found(tmp_path):
    family = llama_like()
    write_as_hf(tmp_path, family, family.tensors(numbers(family.shapes, jnp.bfloat16)))
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for size in (*range(0, len(whole), 7), len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=f"model.safetensors: (truncated|corrupt).*{size:,}$"):
            hf_files.read_tensors(tmp_path)
    path.write_bytes(whole + b"0")
    with pytest.raises(ValueError, match=f"corrupt: its header tells of {len(whole):,} bytes, and the file has {len(whole) + 1:,}"):
        hf_files.read_tensors(tmp_path)


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_header_with_any_other_byte_is_an_error_or_none(place: int, byte: int):
    """Never an error of another kind, and never a tensor that is not wholly in the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16)}, path)
        content = bytearray(path.read_bytes())
        content[place % (len(content) - 32)] = byte
        path.write_bytes(content)
        try:
            found = hf_files.read_tensors(folder)
        except ValueError as error:
            assert "model.safetensors" in str(error)
        else:
            assert all(x.read().nbytes == x.nbytes for x in found.values())


def test_an_index_and_its_shards_have_to_fit_together(tmp_path):
    family = llama_like()
    tensors = family.tensors(numbers(family.shapes))
    write_as_hf(tmp_path, family, tensors, cuts=3)
    index = tmp_path / "model.safetensors.index.json"
    places = json.loads(index.read_text())
    os.rename(tmp_path / "model-00001.safetensors", tmp_path / "model-00009.safetensors")
    with pytest.raises(ValueError, match=r"names 1 of 3 shards that are not there: model-00001\.safetensors"):
        weights.load(tmp_path, family)
    moved = {name: file.replace("00001", "00000") for name, file in places["weight_map"].items()}
    index.write_text(json.dumps({"weight_map": moved}))
    with pytest.raises(ValueError, match=r"names tensors that their shards do not hold: .* of model-00000\.safetensors"):
        weights.load(tmp_path, family)
    for odd in ({"weight_map": {"a": "../secret.safetensors"}}, {"weight_map": [1]}, {}):
        index.write_text(json.dumps(odd))
        with pytest.raises(ValueError, match="weight_map should name a file of this folder"):
            weights.load(tmp_path, family)


def test_what_is_pickled_is_never_opened(tmp_path):
    family = llama_like()
    (tmp_path / "config.json").write_text('{"model_type": "fake_hf", "size": 3}')
    with pytest.raises(ValueError, match=r"holds neither model\.safetensors nor .*index\.json, but config\.json"):
        weights.load(tmp_path, family)
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    for where in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(ValueError, match="never opened here; convert it to safetensors"):
            weights.load(where, family)
    with pytest.raises(ValueError, match="no such file or folder"):
        weights.load(tmp_path / "nowhere", family, Config())
