"""Closed forms of collectives against a network that carries numbers, message by message."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsejax.cost import alphabeta as ab
from wsejax.cost.alphabeta import Link

INSIDE, OUTSIDE = Link(2e-6, 3e9), Link(7e-6, 0.5e9)
ITEM_BYTES = 8


class Network:
    """Chips with clocks: in a round each sends at most one message and receives at most one, when both ends are ready."""

    def __init__(self, n: int, size: int):
        self.data = np.random.default_rng(n).normal(size=(n, size))
        self.expected = self.data.sum(axis=0)
        self.clock = np.zeros(n)

    def round(self, messages: list[tuple[int, int, slice]], link: Link, add: bool) -> None:
        assert len({m[0] for m in messages}) == len({m[1] for m in messages}) == len(messages)
        before, clock = self.data.copy(), self.clock.copy()
        for source, target, part in messages:
            arrives = max(clock[source], clock[target]) + link.seconds(before[source, part].size * ITEM_BYTES)
            self.clock[source] = max(self.clock[source], arrives)
            self.clock[target] = max(self.clock[target], arrives)
            self.data[target, part] = before[source, part] + (before[target, part] if add else 0)

    def ring(self, groups: list[list[int]], parts: Callable[[int], list[slice]], link: Link, add: bool, first: int) -> None:
        """n - 1 rounds of each group at once: its member i passes on part i + first - round."""
        for step in range(len(groups[0]) - 1):
            messages = []
            for number, group in enumerate(groups):
                n, pieces = len(group), parts(number)
                messages += [(group[i], group[(i + 1) % n], pieces[(i + first - step) % n]) for i in range(n)]
            self.round(messages, link, add)

    @property
    def seconds(self) -> float:
        return float(self.clock.max())

    @property
    def bytes(self) -> int:
        return self.data.shape[1] * ITEM_BYTES


def cuts(begin: int, end: int, n: int) -> list[slice]:
    width = (end - begin) // n
    return [slice(begin + i * width, begin + (i + 1) * width) for i in range(n)]


@settings(max_examples=20, deadline=None)
@given(n=st.integers(2, 17), width=st.integers(1, 5))
def test_ring_all_reduce(n, width):
    net = Network(n, n * width)
    pieces = cuts(0, n * width, n)
    net.ring([list(range(n))], lambda _: pieces, INSIDE, add=True, first=0)
    assert net.seconds == pytest.approx(ab.ring_reduce_scatter(n, net.bytes, INSIDE))
    for i in range(n):
        np.testing.assert_allclose(net.data[i, pieces[(i + 1) % n]], net.expected[pieces[(i + 1) % n]])
    net.ring([list(range(n))], lambda _: pieces, INSIDE, add=False, first=1)
    np.testing.assert_allclose(net.data, np.tile(net.expected, (n, 1)))
    assert net.seconds == pytest.approx(ab.ring_all_reduce(n, net.bytes, INSIDE))


@settings(max_examples=20, deadline=None)
@given(n=st.integers(2, 40), size=st.integers(1, 50))
def test_tree_all_reduce(n, size):
    net = Network(n, size)
    everything = slice(0, size)
    strides = [2**k for k in range(int(ab.levels(n)))]
    for stride in strides:
        net.round([(i + stride, i, everything) for i in range(0, n - stride, 2 * stride)], INSIDE, add=True)
    np.testing.assert_allclose(net.data[0], net.expected)
    reduced = net.seconds
    for stride in reversed(strides):
        net.round([(i, i + stride, everything) for i in range(0, n - stride, 2 * stride)], INSIDE, add=False)
    np.testing.assert_allclose(net.data, np.tile(net.expected, (n, 1)))
    assert net.seconds == pytest.approx(ab.tree_all_reduce(n, net.bytes, INSIDE))
    assert net.seconds - reduced == pytest.approx(ab.tree_broadcast(n, net.bytes, INSIDE))


@pytest.mark.parametrize("log_n", [1, 2, 3, 5])
def test_halving_and_doubling(log_n):
    n = 2**log_n
    net = Network(n, 4 * n)
    held = [(0, 4 * n)] * n
    for k in range(log_n):
        distance = n >> (k + 1)
        messages, after = [], list(held)
        for i in range(n):
            begin, end = held[i]
            middle = (begin + end) // 2
            keep, give = ((begin, middle), (middle, end)) if not i & distance else ((middle, end), (begin, middle))
            messages.append((i, i ^ distance, slice(*give)))
            after[i] = keep
        net.round(messages, INSIDE, add=True)
        held = after
    assert net.seconds == pytest.approx(ab.halving_reduce_scatter(n, net.bytes, INSIDE))
    for k in reversed(range(log_n)):
        distance = n >> (k + 1)
        net.round([(i, i ^ distance, slice(*held[i])) for i in range(n)], INSIDE, add=False)
        held = [(min(held[i][0], held[i ^ distance][0]), max(held[i][1], held[i ^ distance][1])) for i in range(n)]
    np.testing.assert_allclose(net.data, np.tile(net.expected, (n, 1)))
    assert net.seconds == pytest.approx(ab.halving_all_reduce(n, net.bytes, INSIDE))


@settings(max_examples=15, deadline=None)
@given(each=st.integers(2, 6), domains=st.integers(2, 5), width=st.integers(1, 3))
def test_hierarchical_all_reduce(each, domains, width):
    size = each * domains * width
    net = Network(each * domains, size)
    inside = [[d * each + i for i in range(each)] for d in range(domains)]
    across = [[d * each + i for d in range(domains)] for i in range(each)]
    pieces = cuts(0, size, each)
    own = lambda i: cuts(pieces[(i + 1) % each].start, pieces[(i + 1) % each].stop, domains)
    net.ring(inside, lambda _: pieces, INSIDE, add=True, first=0)
    net.ring(across, own, OUTSIDE, add=True, first=0)
    half = net.seconds
    net.ring(across, own, OUTSIDE, add=False, first=1)
    net.ring(inside, lambda _: pieces, INSIDE, add=False, first=1)
    np.testing.assert_allclose(net.data, np.tile(net.expected, (each * domains, 1)))
    assert net.seconds == pytest.approx(ab.hierarchical_all_reduce(each, domains, net.bytes, INSIDE, OUTSIDE))
    assert net.seconds - half == pytest.approx(ab.hierarchical_all_gather(each, domains, net.bytes, INSIDE, OUTSIDE))


@pytest.mark.parametrize(("n", "chunks"), [(2, 1), (5, 1), (5, 8), (9, 3)])
def test_ring_broadcast_in_chunks(n, chunks):
    net = Network(n, chunks * 2)
    root = net.data[0].copy()
    pieces = cuts(0, chunks * 2, chunks)
    for step in range(n - 2 + chunks):
        net.round([(i, i + 1, pieces[step - i]) for i in range(n - 1) if 0 <= step - i < chunks], INSIDE, add=False)
    np.testing.assert_allclose(net.data, np.tile(root, (n, 1)))
    assert net.seconds == pytest.approx(ab.ring_broadcast(n, net.bytes, INSIDE, chunks))


def test_a_ring_is_linear_in_latency_and_a_tree_logarithmic():
    """And what a ring sends tends to twice the size, however many there are."""
    latency, rate = Link(1e-6, 1e30), Link(0.0, 1e9)
    ring = [ab.ring_all_reduce(n, 1e6, latency) for n in (8, 64, 512)]
    tree = [ab.tree_all_reduce(n, 1e6, latency) for n in (8, 64, 512)]
    np.testing.assert_allclose(ring, [14e-6, 126e-6, 1022e-6])
    np.testing.assert_allclose(tree, [6e-6, 12e-6, 18e-6])
    np.testing.assert_allclose([ab.ring_all_reduce(n, 1e6, rate) for n in (2, 8, 512)], [1e-3, 1.75e-3, 2 * 511 / 512 * 1e-3])


@given(each=st.integers(1, 16), domains=st.integers(1, 64), size=st.floats(1, 1e10))
def test_pipelining_lies_between_the_slower_stage_and_both(each, domains, size):
    together = ab.pipelined_all_reduce(each, domains, size, INSIDE, OUTSIDE)
    stages = [ab.ring_all_reduce(each, size, INSIDE), ab.ring_all_reduce(domains, size / each, OUTSIDE)]
    assert max(stages) * (1 - 1e-9) <= together <= sum(stages) * (1 + 1e-9)


def test_forms_can_be_traced():
    args = (8.0, 4.0, 1e6)
    form = lambda n, d, s: ab.hierarchical_all_reduce(n, d, s, INSIDE, OUTSIDE) + ab.tree_all_reduce(n * d, s, INSIDE)
    assert float(jax.jit(form)(*args)) == pytest.approx(form(*args), rel=1e-5)
    assert float(jax.grad(form, argnums=2)(*args)) > 0
