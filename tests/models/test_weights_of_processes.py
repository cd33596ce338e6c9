"""Two processes load the same files, and each fills what its devices hold."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROCESS = """
import sys
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
from models import weights
from models.families import FAMILIES
family, folder = FAMILIES["mixtral"], "tests/parity/golden/mixtral"
_, whole = weights.load(folder, family)
mesh = jax.make_mesh((2, 2), ("y", "x"))
for specs in (("y", "x"), ("x",), (None, "y"), ()):
    fits = lambda x: all(name is None or x.shape[n] % 2 == 0 for n, name in enumerate(specs[: x.ndim]))
    layouts = jax.tree.map(lambda x: NamedSharding(mesh, P(*specs[: x.ndim]) if fits(x) else P()), whole)
    _, params = weights.load(folder, family, shardings=layouts)
    assert jax.tree.map(lambda x: x.sharding, params) == layouts
    for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(whole), strict=True):
        assert not x.is_fully_addressable and len(x.addressable_shards) == 2
        for shard in x.addressable_shards:
            assert np.asarray(shard.data).tobytes() == np.asarray(y)[shard.index].tobytes()
try:
    weights.save("never", family, family.presets["tiny"], params)
except ValueError as error:
    print("all of it;", "lies on devices of other processes" in str(error))
"""


@pytest.mark.slow
def test_each_process_fills_what_its_devices_hold():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    begin = lambda n: subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(port), str(n)],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    for one in [begin(n) for n in range(2)]:
        out, err = one.communicate(timeout=300)
        assert one.returncode == 0 and out == "all of it; True\n", err[-2000:]
