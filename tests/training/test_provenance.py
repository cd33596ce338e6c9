"""What a manifest is made of: digests of files, sources, parameters and programs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from wsejax.training.provenance import (
    file_digest,
    head_digest,
    parameters_digest,
    program_digest,
    sources_digest,
)


@given(st.lists(st.binary(max_size=6).filter(lambda b: b"\n" not in b), max_size=6), st.integers(0, 8))
def test_the_head_of_a_file_is_its_first_lines(tmp_path_factory, lines, count):
    folder = tmp_path_factory.mktemp("head")
    (folder / "all").write_bytes(b"".join(line + b"\n" for line in lines))
    (folder / "part").write_bytes(b"".join(line + b"\n" for line in lines[:count]))
    assert head_digest(folder / "all", count) == file_digest(folder / "part")


def test_sources_are_python_and_json_by_name_and_content(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.py").write_text("x = 1")
    seen = {sources_digest(tmp_path)}
    (tmp_path / "notes.md").write_text("no source")
    assert sources_digest(tmp_path) in seen
    for change in (lambda: (tmp_path / "b.json").write_text("{}"), lambda: (tmp_path / "sub/a.py").write_text("x = 2"),
                   lambda: os.rename(tmp_path / "sub/a.py", tmp_path / "a.py")):  # fmt: skip
        change()
        now = sources_digest(tmp_path)
        assert now not in seen
        seen.add(now)


def test_parameters_have_one_digest_on_any_devices_and_another_for_any_bit():
    one = parameters_digest({"a": {"w": jnp.arange(8.0).reshape(2, 4)}, "b": jnp.zeros(3, jnp.bfloat16)})
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("y", "x"))
    spread = jax.device_put(jnp.arange(8.0).reshape(2, 4), NamedSharding(mesh, PartitionSpec("y", "x")))
    assert parameters_digest({"a": {"w": spread}, "b": jnp.zeros(3, jnp.bfloat16)}) == one
    others = [
        {"a": {"w": spread}, "b": -jnp.zeros(3, jnp.bfloat16)},
        {"a": {"w": spread}, "b": jnp.zeros(3, jnp.float16)},
        {"a": {"w": spread}, "c": jnp.zeros(3, jnp.bfloat16)},
        {"a": {"w": spread.reshape(4, 2)}, "b": jnp.zeros(3, jnp.bfloat16)},
    ]
    assert len({one, *map(parameters_digest, others)}) == 5


PROGRAM = "lambda w, x: jax.lax.scan(lambda c, r: (jnp.tanh(c @ w) + RATE * r, c.sum()), x, x[None] * 2)"


def program(rate: float):
    return eval(PROGRAM, {"jax": jax, "jnp": jnp, "RATE": rate})


def test_a_program_has_one_digest_in_every_process_and_another_for_another_constant():
    shape = jax.ShapeDtypeStruct((4, 4), jnp.float32)
    here = program_digest(program(0.5), shape, shape)
    assert here["ops"] > 4 and program_digest(program(0.5), jnp.ones((4, 4)), shape) == here
    assert program_digest(program(0.25), shape, shape)["sha256"] != here["sha256"]
    assert program_digest(program(0.5), *[jax.ShapeDtypeStruct((8, 8), jnp.float32)] * 2)["sha256"] != here["sha256"]
    script = (
        "import jax, jax.numpy as jnp; from wsejax.training.provenance import program_digest; RATE = 0.5\n"
        f"shape = jax.ShapeDtypeStruct((4, 4), jnp.float32); print(program_digest({PROGRAM}, shape, shape)['sha256'])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == here["sha256"]


def test_a_program_without_a_complete_text_says_so():
    calls = lambda x: jax.pure_callback(np.sin, jax.ShapeDtypeStruct((), jnp.float32), x)
    digest = program_digest(calls, jax.ShapeDtypeStruct((), jnp.float32))
    assert digest["sha256"] is None and "pure_callback" in digest["why"]


TWO = """
import json, sys
from pathlib import Path
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from wsejax.training.provenance import Provenance, parameters_digest

index, address, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
jax.config.update("jax_platforms", "cpu")
jax.distributed.initialize(address, 2, index)
mesh, host = Mesh(np.array(jax.devices()), ("x",)), np.arange(8.0, dtype=np.float32).reshape(2, 4)
spread = lambda *axes: jax.make_array_from_callback((2, 4), NamedSharding(mesh, PartitionSpec(*axes)), lambda at: host[at])
assert not spread("x").is_fully_addressable
provenance = Provenance(folder if index == 0 else folder / "of_another_host", {}, print)
answers = [provenance.differs(6) is not None, provenance.differs(4) is not None]
print(json.dumps([parameters_digest({"a": spread("x"), "b": spread()}), answers]))
"""


def test_two_processes_agree_on_parameters_and_on_checkpoints(run):
    """Each holds a half of the array, and only the first one sees the folder."""
    (run.out / "checkpoints/6/meta").write_text("other")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    children = [
        subprocess.Popen([sys.executable, "-c", TWO, str(index), address, str(run.out)], env=environment, stdout=subprocess.PIPE, text=True)
        for index in range(2)
    ]
    try:
        said = [json.loads(child.communicate(timeout=120)[0].splitlines()[-1]) for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
    array = np.arange(8.0, dtype=np.float32).reshape(2, 4)
    assert said == [[parameters_digest({"a": array, "b": array}), [True, False]]] * 2
