"""The invariant of the machine: in the compiled program only neighbours talk, and moved bytes are those that the program says."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wsejax as wse
from tests.compiler.programs import PROGRAMS
from tests.fabric.grids import executed_byte_hops
from wsejax.fabric import ring_order

SPEC = wse.WSE3.scaled(16, 16)
COLLECTIVE = re.compile(r"\b(all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-broadcast|send|recv)(-start)?\(")
PAIRS = re.compile(r"collective-permute(?:-start)?\(.*source_target_pairs=\{(.*?)\}\}")

# Products, reductions, tables, gradients, loops and relayouts: what makes a program talk.
TALKATIVE = [
    "products", "einsums", "normalisation", "embedding", "updates_by_index", "gradient_of_embedding", "sums",
    "other_reductions", "cumulative", "sorting", "square_plus_its_transpose", "scan_over_layers", "branches",
    "gradient_of_scan_with_remat", "while_loops",
]  # fmt: skip


def links(text: str) -> set[tuple[int, int]]:
    """(source, target) device numbers of every collective-permute in an HLO text."""
    return {(int(a), int(b)) for pairs in PAIRS.findall(text) for a, b in re.findall(r"(\d+),(\d+)", pairs)}


def compiled_text(name: str, tiles, devices) -> str:
    fun, args = PROGRAMS[name]
    return wse.jit(fun, wse.Wafer(SPEC, tiles=tiles, devices=devices)).lower(*args).compile().as_text()


def assert_only_neighbours(text: str, devices: tuple[int, int]) -> None:
    assert not COLLECTIVE.search(text), COLLECTIVE.search(text)
    rings = [ring_order(n) for n in devices]
    steps = [set(zip(ring, ring[1:] + ring[:1], strict=True)) for ring in rings]
    for a, b in links(text):
        (ya, xa), (yb, xb) = divmod(a, devices[1]), divmod(b, devices[1])
        assert (ya == yb) != (xa == xb), f"{a} -> {b} is not along one line"
        hops = abs(ya - yb) + abs(xa - xb)
        folded = (ya, yb) in steps[0] if xa == xb else (xa, xb) in steps[1]
        assert hops == 1 or (hops == 2 and folded), f"{a} -> {b} takes {hops} hops"


@pytest.mark.parametrize("name", TALKATIVE)
def test_the_compiled_program_has_no_collective_but_shifts_between_neighbours(name):
    text = compiled_text(name, (2, 2), (2, 2))
    assert_only_neighbours(text, (2, 2))
    assert links(text), "this program must talk for the test to mean something"


@pytest.mark.parametrize("devices", [(1, 4), (4, 1)])
def test_on_a_line_of_four_a_ring_step_is_two_hops_at_most(devices):
    text = compiled_text("products", (4, 4), devices)
    assert_only_neighbours(text, devices)
    assert {abs(a - b) for a, b in links(text)} >= {1, 2}


def test_one_device_talks_to_nobody():
    assert "collective-permute" not in compiled_text("products", (4, 4), (1, 1))


def test_the_check_would_catch_a_long_hop_and_another_collective():
    permute = "%c = f32[2] collective-permute(%x), channel_id=1, source_target_pairs={{0,3},{1,2}}"
    assert links(permute) == {(0, 3), (1, 2)}
    with pytest.raises(AssertionError, match="3 hops"):
        assert_only_neighbours(permute, (1, 4))
    with pytest.raises(AssertionError, match="one line"):
        assert_only_neighbours(permute, (2, 2))
    with pytest.raises(AssertionError):
        assert_only_neighbours("%a = f32[8] all-gather-start(f32[4] %x)", (1, 2))


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
