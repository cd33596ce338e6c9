"""A model is in host memory once while it is loaded."""

from __future__ import annotations

import sys

import pytest

from experiments.loading_memory import Settings, measured, table, write_random


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells the peak of resident memory")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_load_takes_little_more_memory_than_the_files(tmp_path, dtype: str):
    settings = Settings(layers=6, width=1024, ffn_width=2816, heads=16, vocab_size=4000, shard_bytes=40e6)
    size = write_random(tmp_path, settings, dtype)
    assert size > 140e6 and len(list(tmp_path.glob("*.safetensors"))) > 3
    rows = [measured(tmp_path, dtype, devices, size) for devices in ((1, 1), (2, 2))]
    assert all(0.9 < row.ratio < 1.3 for row in rows), rows
    assert table(rows).row_count == 2
