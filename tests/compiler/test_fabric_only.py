"""The invariant of the machine: in the compiled program only neighbours talk, and moved bytes are those that the program says."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import wsejax as wse
from tests.compiler.programs import PROGRAMS
from tests.fabric.grids import executed_byte_hops

SPEC = wse.WSE3.scaled(16, 16)
# Products, reductions, tables, gradients, loops and relayouts: what makes a program talk.
TALKATIVE = [
    "products", "einsums", "normalisation", "embedding", "updates_by_index", "gradient_of_embedding", "sums",
    "other_reductions", "cumulative", "sorting", "square_plus_its_transpose", "scan_over_layers", "branches",
    "gradient_of_scan_with_remat", "while_loops",
]  # fmt: skip


def checked(name: str, tiles, devices) -> wse.HloReport:
    fun, args = PROGRAMS[name]
    return wse.check_hlo(wse.jit(fun, wse.Wafer(SPEC, tiles=tiles, devices=devices)).lower(*args).compile())


@pytest.mark.parametrize("name", TALKATIVE)
def test_the_compiled_program_has_no_collective_but_shifts_between_neighbours(name):
    report = checked(name, (2, 2), (2, 2))
    assert report.links and report.permutes, "this program must talk for the test to mean something"


@pytest.mark.parametrize("devices", [(1, 4), (4, 1)])
def test_on_a_line_of_four_a_ring_step_is_two_hops_at_most(devices):
    assert {abs(a - b) for a, b in checked("products", (4, 4), devices).links} >= {1, 2}


def test_one_device_talks_to_nobody():
    assert checked("products", (4, 4), (1, 1)).permutes == 0


def permute(*pairs) -> str:
    shown = ",".join(f"{{{a},{b}}}" for a, b in pairs)
    return f"  %c = f32[2]{{0}} collective-permute(%x), channel_id=1, source_target_pairs={{{shown}}}, metadata={{}}"


def test_what_the_check_allows():
    assert wse.check_hlo(permute((0, 1), (1, 3), (3, 2), (2, 0)), (1, 4)).links == {(0, 1), (1, 3), (3, 2), (2, 0)}
    assert wse.check_hlo(permute((0, 2), (1, 3)), (2, 2)).permutes == 1


@pytest.mark.parametrize(
    ("text", "devices", "says"),
    [
        (permute((0, 3)), (1, 4), "3 hops away"),
        (permute((0, 1), (0, 3)), (2, 2), "not on one line"),
        (permute((1, 1)), (2, 2), "not on one line"),
        (permute((2, 4)), (1, 8), None),
        (permute((1, 3)), (1, 8), None),
        (permute((0, 2)), (1, 2), "not on one line|hops away"),
        ("%a = f32[8]{0} all-gather(f32[4]{0} %x), dimensions={0}", (1, 2), "all-gather"),
        ("%a = (f32[4], f32[8]) all-gather-start(f32[4]{0} %x)", (1, 2), "all-gather"),
        ("ROOT %r = (f32[], f32[]) all-reduce(f32[] %x, f32[] %y), to_apply=%add", (1, 2), "all-reduce"),
        ("%a = f32[8]{0} all-to-all(f32[8]{0} %x)", (1, 2), "all-to-all"),
    ],
)
def test_what_the_check_catches(text, devices, says):
    if says is None:
        wse.check_hlo(text, devices)
    else:
        with pytest.raises(wse.FabricError, match=says):
            wse.check_hlo(text, devices)


def test_the_check_reads_what_xla_writes():
    """A real program that breaks the law, and one that hops too far."""
    mesh = jax.make_mesh((1, 4), ("y", "x"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])
    place = lambda fun: jax.jit(jax.shard_map(fun, mesh=mesh, in_specs=P("y", "x"), out_specs=P("y", "x"), check_vma=False))
    x = np.ones((4, 8), np.float32)
    with pytest.raises(wse.FabricError, match="all-reduce"):
        wse.check_hlo(place(lambda v: v * lax.psum(v, "x")).lower(x).compile(), (1, 4))
    far = [(i, (i + 1) % 4) for i in range(4)]
    with pytest.raises(wse.FabricError, match="device 3 sends to 0, 3 hops away"):
        wse.check_hlo(place(lambda v: lax.ppermute(v, "x", far)).lower(x).compile(), (1, 4))
    with pytest.raises(ValueError, match="devices=None"):
        wse.check_hlo(place(jnp.sin).lower(x).compile())


MATRIX = np.ones((16, 32), np.float32)
COUNTED = {
    "product": (lambda x, w: x @ w, (MATRIX, np.ones((32, 64), np.float32))),
    "its gradient": (jax.grad(lambda w, x: jnp.sin(x @ w).sum()), (np.ones((32, 64), np.float32), MATRIX)),
    "sum": (lambda x: x.sum(0), (MATRIX,)),
    "sum of all": (lambda x: x.sum(), (MATRIX,)),
    "sort": (lambda x: jnp.sort(x, 0), (MATRIX,)),
    "transpose meets itself": (lambda x: x + x.T, (np.ones((16, 16), np.float32),)),
    "attention": (lambda q, k: jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", q, k)), (np.ones((4, 8, 4), np.float32),) * 2),
}


@pytest.mark.parametrize("devices", [(2, 2), (1, 4), (4, 1), (1, 2)], ids=str)
@pytest.mark.parametrize("name", COUNTED)
def test_byte_hops_of_the_program_are_those_of_the_executed_shifts_when_a_tile_is_a_device(name, devices):
    fun, args = COUNTED[name]
    lowered = wse.jit(fun, wse.Wafer(SPEC, tiles=devices, devices=devices)).lower(*args)
    assert lowered.program.byte_hops == executed_byte_hops(lowered._jitted, devices, *args)
