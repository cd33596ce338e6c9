"""Physical execution: a shift takes the static routes and nothing else, so a wrong route, a dead PE or a dead link shows."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

import wsejax as wse
from tests.hardware.test_remap import small_wafers
from wsejax import fabric
from wsejax.fabric.physical import Physical

GRID = P("y", "x")
WAYS = ("north", "east", "south", "west")


def shifted(x: np.ndarray, direction: str) -> np.ndarray:
    """The oracle: a copy into a grid of zeros."""
    out = np.zeros_like(x)
    if direction == "east":
        out[:, 1:] = x[:, :-1]
    elif direction == "west":
        out[:, :-1] = x[:, 1:]
    elif direction == "south":
        out[1:] = x[:-1]
    else:
        out[:-1] = x[1:]
    return out


def entries(wafer: wse.Wafer, dtype=np.float32) -> np.ndarray:
    """Different in every PE."""
    return (1 + np.arange(np.prod(wafer.tiles) * 2)).reshape(*wafer.tiles, 2).astype(dtype)


def all_ways(v):
    return [fabric.shift(v, way) for way in WAYS]


def moved(wafer: wse.Wafer, x, routes: wse.Routes | None = None) -> list[np.ndarray]:
    """The four shifts, along given routes."""
    machine = Physical(wafer, routes)
    return [np.asarray(y) for y in machine.run(all_ways, wafer.mesh, (GRID,), GRID)(x)]


@given(
    small_wafers(max_side=7),
    st.sampled_from([(1, 1), (1, 2), (2, 2)]),
    st.sampled_from([np.float32, np.int32, np.uint8, np.complex64, np.bool_]),
)
def test_shifts_are_those_of_the_logical_mesh(drawn, devices, dtype):
    spec, defects = drawn
    assume(not defects.dead_pes.all())
    try:
        wafer = wse.Wafer(spec, defects, devices=(1, 1), execution="physical")
        wafer = wse.Wafer(spec, defects, devices=devices, tiles=wafer.tiles, execution="physical")
    except ValueError:
        assume(False)
    x = entries(wafer, dtype)
    for got, way in zip(moved(wafer, x), WAYS, strict=True):
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, shifted(x, way))


def test_an_index_moves_like_any_other_array(device_grid):
    """It has an entry a PE in both executions and on every device mesh."""
    wafer = damaged().replace(tiles=(4, 8))
    f = lambda v: fabric.shift(fabric.index(v, "x"), "south") + fabric.all_reduce(fabric.index(v, "y"), "x") + v.astype(np.int32)
    x = entries(wafer)
    want = shifted(np.broadcast_to(np.arange(8)[None, :, None], (4, 8, 1)), "south") + 8 * np.arange(4)[:, None, None] + x.astype(np.int32)
    for machine in (wafer.replace(devices=device_grid), wafer.replace(devices=device_grid, execution="logical")):
        np.testing.assert_array_equal(wse.wafer_map(f, machine, (GRID,), GRID)(x), want)


def test_arrays_without_elements_move(device_grid):
    wafer = damaged().replace(tiles=(4, 8), devices=device_grid)
    out = wse.wafer_map(lambda v: fabric.shift(v, "east"), wafer, (GRID,), GRID)(np.zeros((4, 8, 0, 3), np.float32))
    assert out.shape == (4, 8, 0, 3)


@functools.cache
def damaged() -> wse.Wafer:
    spec = wse.WSE3.scaled(9, 11)
    defects = wse.DefectMap.uniform(spec, dead_pe_fraction=0.1, dead_link_fraction=0.05, seed=0)
    return wse.Wafer(spec, defects, devices=(1, 1), execution="physical")


@given(st.data())
def test_one_wrong_step_of_one_route_is_seen(data):
    """Whatever the step becomes: the shift that takes the route, or the one that takes it back, gives other numbers."""
    wafer = damaged()
    routes = wafer.routes
    name = data.draw(st.sampled_from(["east", "south"]))
    steps = np.array(getattr(routes, name))
    r, c = (data.draw(st.integers(0, n - 1)) for n in steps.shape[:2])
    hop = data.draw(st.integers(0, int((steps[r, c] >= 0).sum()) - 1))
    steps[r, c, hop] = data.draw(st.sampled_from([way for way in range(4) if way != steps[r, c, hop]]))
    mutant = dataclasses.replace(routes, **{name: steps})
    x = entries(wafer)
    got, back = ("east", "west") if name == "east" else ("south", "north")
    out = dict(zip(WAYS, moved(wafer, x, mutant), strict=True))
    assert not np.array_equal(out[got], shifted(x, got))
    assert not np.array_equal(out[back], shifted(x, back))


@pytest.mark.parametrize("what", ["pes", "links"])
def test_what_dies_under_a_route_poisons_what_takes_it(what):
    """Routes of a wafer are taken on the same wafer with one more dead part: everything that meets it arrives as NaN, the rest as ever."""
    spec = wse.WSE3.scaled(6, 7)
    healthy = wse.Wafer(spec, devices=(1, 1), execution="physical")
    worse = healthy.defects.with_dead(pes=[(2, 3)]) if what == "pes" else healthy.defects.with_dead(links=[((2, 3), (2, 4))])
    machine = Physical(healthy)
    broken = Physical.__new__(Physical)
    broken.__dict__.update(machine.__dict__)
    place = machine.place
    broken.ways = {
        "east": machine._way(worse, 1, place[:, :, :-1].reshape(2, -1), healthy.routes.east.reshape(-1, 1), place[:, :, :1]),
    }
    broken.name = f"{machine.name}_{what}"  # what JAX has traced is known by the name
    x = entries(healthy)
    (got,) = broken.run(lambda v: (fabric.shift(v, "east"),), healthy.mesh, (GRID,), (GRID,))(x)
    want = shifted(x, "east")
    want[2, 4] = np.nan
    if what == "pes":
        want[2, 3] = np.nan  # what goes into it
    np.testing.assert_array_equal(np.asarray(got), want)


def test_other_pes_hold_poison_and_programs_that_look_at_them_show_it():
    wafer = damaged()
    held = []

    def peek(v):
        held.append(v.shape)
        return v + jnp.max(v) * 0  # a PE cannot see all the others: what it would see is NaN

    out = wse.wafer_map(peek, wafer, (GRID,), GRID)(entries(wafer))
    assert held[-1][:2] == wafer.defects.shape
    assert np.isnan(out).all()


def test_masks_of_who_sends_hold_for_both_executions():
    wafer = damaged()
    twin = wafer.replace(execution="logical", tiles=wafer.tiles)
    x = entries(wafer)
    send = lambda v: fabric.shift(v, "south", sends=fabric.index(v, "x") % 2 == 0)
    want = shifted(np.where(np.arange(x.shape[1])[None, :, None] % 2 == 0, x, 0), "south")
    for machine in (wafer, twin):
        np.testing.assert_array_equal(wse.wafer_map(send, machine, (GRID,), GRID)(x), want)


def step(v):
    """A function of the module, traced once: JAX may keep what it has traced."""
    return fabric.shift(v, "east") + fabric.index(v, "y").astype(v.dtype)


def test_what_was_traced_for_one_wafer_is_not_used_for_another():
    spec = wse.WSE3.scaled(6, 6)
    loop = lambda v: jax.lax.scan(lambda c, _: (jax.jit(step)(c), None), v, None, length=2)[0]
    for seed in range(3):
        defects = wse.DefectMap.uniform(spec, dead_pe_fraction=0.06, seed=seed)
        wafer = wse.Wafer(spec, defects, tiles=(4, 4), devices=(1, 1), execution="physical")
        x = entries(wafer)
        rows = np.arange(4, dtype=np.float32)[:, None, None]
        np.testing.assert_array_equal(wse.wafer_map(loop, wafer, (GRID,), GRID)(x), shifted(shifted(x, "east") + rows, "east") + rows)


def test_gradients_take_the_routes_back():
    wafer = damaged()
    x = entries(wafer)
    f = lambda v: fabric.shift(v, "east") ** 2 + fabric.ring_shift(v, "y")
    twin = wafer.replace(execution="logical", tiles=wafer.tiles)
    got, want = (jax.jit(jax.grad(lambda v, m=m: wse.wafer_map(f, m, (GRID,), GRID)(v).sum()))(x) for m in (wafer, twin))
    np.testing.assert_array_equal(got, want)


def test_a_grid_argument_has_a_gradient_beside_a_whole_one():
    wafer = damaged()
    x = entries(wafer)
    f = lambda v, rate: v + rate * (fabric.shift(v, "east") - v) ** 2
    twin = wafer.replace(execution="logical", tiles=wafer.tiles)
    loss = lambda m: lambda v: wse.wafer_map(f, m, (GRID, P()), GRID)(v, np.float32(0.5)).sum()
    got, want = (jax.jit(jax.grad(loss(m)))(x) for m in (wafer, twin))
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("op", [fabric.all_reduce, fabric.broadcast, fabric.reduce, fabric.all_gather], ids=lambda f: f.__name__)
@pytest.mark.parametrize("axis", ["y", "x"])
def test_collectives_are_the_same_in_both_executions(op, axis):
    wafer = damaged()
    x = np.random.default_rng(0).standard_normal((*wafer.tiles, 2)).astype(np.float32)
    f = lambda v: op(v, axis)
    out = P("y", "x")
    want = wse.wafer_map(f, wafer.replace(execution="logical", tiles=wafer.tiles), (GRID,), out)(x)
    np.testing.assert_array_equal(wse.wafer_map(f, wafer, (GRID,), out)(x), want)


def test_bad_calls_say_what_to_do_instead():
    wafer = damaged()
    x = entries(wafer)
    with pytest.raises(ValueError, match=r"fabric.hop is about devices.*fabric.shift"):
        wse.wafer_map(lambda v: fabric.hop(v, "x", 1), wafer, (GRID,), GRID)(x)
    with pytest.raises(ValueError, match=r"fabric.coordinate.*fabric.index"):
        wse.wafer_map(lambda v: v + fabric.coordinate("x"), wafer, (GRID,), GRID)(x)
    with pytest.raises(ValueError, match=r"two neighbouring dimensions"):
        wse.wafer_map(lambda v: v, wafer, (P("y", None, "x"),), P("y", None, "x"))(np.zeros((wafer.tiles[0], 2, wafer.tiles[1])))
    with pytest.raises(ValueError, match=r"shape \(16, 18, 2\).*one entry a PE"):
        wse.wafer_map(lambda v: v, wafer, (GRID,), GRID)(np.zeros((2 * wafer.tiles[0], 2 * wafer.tiles[1], 2), np.float32))
    with pytest.raises(ValueError, match=r"has no gradient"):
        jax.grad(lambda s: wse.wafer_map(lambda v, s: v * s, wafer, (GRID, P()), GRID)(x, s).sum())(np.float32(2))
    with pytest.raises(ValueError, match=r"execution='logical'"):
        wse.jit(wse.wafer_map(lambda v: v, wafer, (GRID,), GRID), wafer.replace(execution="logical", tiles=wafer.tiles)).lower(x)
    with pytest.raises(ValueError, match=r"programs for PEs.*execution='logical'"):
        wse.jit(jnp.sin, wafer)
    with pytest.raises(TypeError, match=r"key_data"):
        wse.wafer_map(lambda v: v, wafer, (GRID,), GRID)(jax.random.split(jax.random.key(0), wafer.tiles))
    with pytest.raises(ValueError, match=r"execution='both': must be one of 'logical', 'physical'"):
        wse.Wafer(wse.WSE3.scaled(4, 4), devices=(1, 1), execution="both")
