"""Traffic: what is counted is what was sent, in loops and branches, by logical link and along the routes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import wsejax as wse
from wsejax import fabric

GRID = P("y", "x")


def wafer_of(devices=(1, 1)) -> wse.Wafer:
    spec = wse.WSE3.scaled(8, 9)
    defects = wse.DefectMap.uniform(spec, dead_pe_fraction=0.08, dead_link_fraction=0.03, seed=1)
    return wse.Wafer(spec, defects, tiles=(4, 6), devices=devices, execution="physical")


def program(v):
    """One shift east, three south in a scan, a masked one in a branch, and as many west as a while loop wants."""
    east = fabric.shift(v, "east")
    south, _ = jax.lax.scan(lambda c, _: (fabric.shift(c, "south"), None), east, None, length=3)
    first = fabric.index(v, "x") == 0
    north = jax.lax.cond(jnp.asarray(True), lambda c: fabric.shift(c, "north", sends=first), lambda c: c, south)
    _, out = jax.lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, fabric.shift(s[1], "west")), (0, north))
    return out


@pytest.mark.parametrize("devices", [(1, 1), (1, 2), (2, 2)], ids=str)
def test_every_shift_is_counted_as_often_as_it_runs(devices):
    x = np.ones((4, 6, 3), np.float32)
    traffic = wse.traffic(wse.wafer_map(program, wafer_of(devices), (GRID,), GRID), x)
    want = np.zeros((4, 4, 6), int)
    want[1, :, :-1] = 3
    want[2, :-1] = 9
    want[0, 1:, 0] = 3
    want[3, :, 1:] = 6
    np.testing.assert_array_equal(traffic.wavelets, want)
    assert traffic.wavelet_hops == want.sum()
    assert traffic.shifts == 1 + 3 + 1 + 2


@pytest.mark.parametrize(("dtype", "words"), [(np.int8, 1), (np.float16, 2), (np.float32, 3), (np.complex64, 6)])
def test_wavelets_are_words_of_32_bits(dtype, words):
    x = np.ones((4, 6, 3), dtype)
    traffic = wse.traffic(wse.wafer_map(lambda v: fabric.shift(v, "east"), wafer_of(), (GRID,), GRID), x)
    assert traffic.wavelet_hops == 4 * 5 * words


def test_links_carry_what_the_routes_over_them_send():
    """Against a walk over the routes, one message after the other."""
    wafer = wafer_of()
    traffic = wse.traffic(wse.wafer_map(program, wafer, (GRID,), GRID), np.ones((4, 6, 3), np.float32))
    step, back = [(-1, 0), (0, 1), (1, 0), (0, -1)], [2, 3, 0, 1]
    want = np.zeros((4, *wafer.defects.shape), int)
    for steps, d in ((wafer.routes.east[:4, :5], (0, 1)), (wafer.routes.south[:3, :6], (1, 0))):
        ahead, home = (1, 3) if d == (0, 1) else (2, 0)
        for r, c in np.ndindex(*steps.shape[:2]):
            at = np.array([wafer.remap.physical_row[r, c], wafer.remap.physical_col[r, c]])
            for way in steps[r, c][steps[r, c] >= 0]:
                want[way, at[0], at[1]] += traffic.wavelets[ahead, r, c]
                at += step[way]
                want[back[way], at[0], at[1]] += traffic.wavelets[home, r + d[0], c + d[1]]
    got = traffic.on_links()
    np.testing.assert_array_equal(got, want)
    assert not got[:, wafer.defects.dead_pes].any()
    assert got.sum() > traffic.wavelet_hops  # detours


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(TypeError, match=r"wse.wafer_map"):
        wse.traffic(jnp.sin, 1.0)
    coarse = wse.Wafer(wse.WSE3.scaled(8, 8), tiles=(4, 4), devices=(1, 1))
    traffic = wse.traffic(wse.wafer_map(lambda v: fabric.shift(v, "east"), coarse, (GRID,), GRID), np.ones((4, 4), np.float32))
    with pytest.raises(ValueError, match=r"execution='physical'"):
        traffic.on_links()
    with pytest.raises(ValueError, match=r"sends is int32"):
        wse.traffic(wse.wafer_map(lambda v: fabric.shift(v, "east", sends=fabric.index(v, "x")), coarse, (GRID,), GRID), np.ones((4, 4)))


@pytest.mark.parametrize("devices", [(1, 1), (1, 2), (2, 2)], ids=str)
def test_shifts_that_jax_has_made_into_others_are_refused(devices):
    """A derivative goes the other way under the same name, and a batch may look like rows."""
    wafer = wse.Wafer(wse.WSE3.scaled(8, 8), tiles=(4, 4), devices=devices)
    east = lambda u: fabric.shift(u, "east")
    for f in (
        lambda v: jax.vjp(east, v)[1](v)[0],
        lambda v: jax.jvp(east, (v,), (v,))[1],
        lambda v: jax.vmap(east)(jnp.broadcast_to(v[None], (v.shape[0], *v.shape)))[0],
        lambda v: jax.grad(lambda u: fabric.shift(u, "south", sends=fabric.index(u, "x") == 0).sum())(v),
    ):
        with pytest.raises(ValueError, match=r"vmap or a derivative"):
            wse.traffic(wse.wafer_map(f, wafer, (GRID,), GRID), np.ones((4, 4, 2), np.float32))
    program = wse.wafer_map(east, wafer, (GRID,), GRID)
    for other in (jax.vmap(program), jax.grad(lambda v: program(v).sum()), jax.jit(program)):
        with pytest.raises(TypeError, match=r"as wse.wafer_map made it"):
            wse.traffic(other, np.ones((4, 4, 2), np.float32))
    with pytest.raises(ValueError, match=r"fabric.size is about devices.*counts what PEs send"):
        wse.traffic(wse.wafer_map(lambda v: fabric.gather(v, "x", 1), wafer, (GRID,), P("y", None)), np.ones((4, 4, 2), np.float32))


def test_collectives_of_the_fabric_are_counted():
    wafer = wse.Wafer(wse.WSE3.scaled(8, 8), tiles=(4, 4), devices=(1, 2))
    for f, hops in (
        (lambda v: fabric.all_reduce(v, "x"), 2 * 3 * 4),
        (lambda v: fabric.broadcast(v, "y", 2), 3 * 4),
        (lambda v: fabric.all_gather(v, "x")[:, :, 0], 2 * 3 * 3 * 4),
    ):
        assert wse.traffic(wse.wafer_map(f, wafer, (GRID,), GRID), np.ones((4, 4), np.float32)).wavelet_hops == hops
