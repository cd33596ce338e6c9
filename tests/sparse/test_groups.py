"""What groups ask: who is pruned, how many are kept where, and what is refused with what there is."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsejax import sparse
from wsejax.sparse.plan import densities, plan

SHAPES = {"up": (2, 8, 32), "down": (2, 32, 8), "out": (2, 2, 4, 8)}
PARAMS = {
    "blocks": {**{name: {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)} for name, shape in SHAPES.items()}},
    "norm": {"scale": jax.ShapeDtypeStruct((8,), jnp.float32)},
    "head": {"kernel": jax.ShapeDtypeStruct((8, 64), jnp.float32)},
}
PARAMS["blocks"]["up"]["bias"] = jax.ShapeDtypeStruct((2, 4, 8), jnp.float32)  # of heads: as many axes as a matrix


def init(*groups: sparse.Group):
    return jax.eval_shape(sparse.sparsify(optax.sgd(0.1), *groups).init, PARAMS)


def test_layers_below_blocks_are_counted_one_by_one_unless_it_is_said():
    (found,) = plan([sparse.static(".*/kernel", 0.9)], PARAMS)
    assert {path: (p.stack, p.first) for path, p in found.items()} == {
        "blocks/up/kernel": (1, round(0.1 * 256)), "blocks/down/kernel": (1, round(0.1 * 256)), "blocks/out/kernel": (1, round(0.1 * 64)),
        "head/kernel": (0, round(0.1 * 512)),
    }  # fmt: skip
    (whole,) = plan([sparse.static("blocks/up/kernel", 0.9, stack_axes=0)], PARAMS)
    assert whole["blocks/up/kernel"].first == round(0.1 * 512)
    (blocks,) = plan([sparse.static("blocks/up/kernel", 0.5, structure=sparse.Block((4, 4)))], PARAMS)
    assert blocks["blocks/up/kernel"].first == 8


shapes = st.lists(st.tuples(st.integers(1, 3), st.integers(2, 64), st.integers(2, 64)), min_size=1, max_size=5)


@given(shapes=shapes, sparsity=st.floats(0, 0.99))
def test_erdos_renyi_kernel_sums_to_the_target(shapes, sparsity):
    named = {f"blocks/{n}": shape for n, shape in enumerate(shapes)}
    group = sparse.rigl(".*", sparsity, end=100, distribution="erk")
    found = densities(group, named, sparsity)
    kept, weights = (
        sum(share * math.prod(shape) for share, shape in zip(s, shapes, strict=True)) for s in (found.values(), [1.0] * len(shapes))
    )
    assert kept == pytest.approx((1 - sparsity) * weights, rel=1e-9, abs=1e-9)
    assert all(0 <= share <= 1 + 1e-12 for share in found.values())
    by_shape = [(share, (a + b) / (a * b)) for share, (_, a, b) in zip(found.values(), shapes, strict=True) if share < 1]
    assert np.ptp([share / raw for share, raw in by_shape] or [0.0]) < 1e-9, "in proportion where not dense"
    assert all(raw >= max((raw for _, raw in by_shape), default=0.0) - 1e-12
               for share, (_, a, b) in zip(found.values(), shapes, strict=True) if share == 1 for raw in [(a + b) / (a * b)])  # fmt: skip
    counts = plan([group], {"blocks": {str(n): jax.ShapeDtypeStruct(shape, jnp.float32) for n, shape in enumerate(shapes)}})[0]
    total = sum(p.first * shape[0] for p, shape in zip(counts.values(), shapes, strict=True))
    assert abs(total - (1 - sparsity) * weights) <= sum(shape[0] for shape in shapes) / 2 + 1e-6, "half a weight for each tensor"


def test_a_count_is_exact_where_float32_is_not():
    params = {"kernel": jax.ShapeDtypeStruct((1 << 13, 3 << 11), jnp.float32)}
    (found,) = plan([sparse.gmp("kernel", 0.7, begin=0, end=3, every=1)], params)
    weights = 3 << 24
    assert found["kernel"].kept.tolist() == [round((1 - (0.7 - 0.7 * (1 - n / 3) ** 3)) * weights) for n in range(3)] + [
        round((1 - 0.7) * weights)
    ]


def test_densified_drops_all_masks_at_its_step_and_changes_none_after():
    group = sparse.densified(sparse.set_("head/kernel", 0.5, begin=10, every=10, end=50), 30)
    assert group.steps == (10, 20, 30)
    assert plan([group], PARAMS)[0]["head/kernel"].kept.tolist() == [256, 256, 512]


REFUSED = {
    "matches nothing": (lambda: init(sparse.static("blocks/sideways", 0.5)), "sideways': matches .* no parameter; there are blocks/"),
    "part of a path": (lambda: init(sparse.static("kernel", 0.5)), "matches the whole path of no parameter"),
    "norm gain": (lambda: init(sparse.static("norm/scale|head/kernel", 0.5)), r"matches norm/scale \[8\], which is no matrix"),
    "bias": (lambda: init(sparse.static("blocks/up/.*", 0.5)), r"matches blocks/up/bias \[2, 4, 8\], which is no matrix"),
    "row of layers": (lambda: init(sparse.static("head/kernel", 0.5, stack_axes=1)), "which is no matrix in each layer"),
    "overlap": (lambda: init(sparse.static("head/.*", 0.5), sparse.static(".*/kernel", 0.5)), "already in the group of 'head/"),
    "no expression": (lambda: sparse.static("(", 0.5), r"pattern='\(': is no regular expression"),
    "all pruned": (lambda: sparse.static(".*", 1.0), r"sparsity=1\.0 at step 0"),
    "below 0": (lambda: sparse.rigl(".*", -0.1, end=200), r"sparsity=-0\.1"),
    "schedule out of range": (lambda: sparse.gmp(".*", lambda step: step / 100, begin=0, end=100, every=50), r"sparsity=1\.0 at step 100"),
    "no sparsity": (lambda: sparse.static(".*"), "sparsity=None"),
    "two sparsities": (lambda: sparse.static(".*", 0.9, structure=sparse.NM(2, 4)), r"NM\(n=2, m=4, axis=0\) has a sparsity of 0\.5"),
    "ends first": (lambda: sparse.gmp(".*", 0.5, begin=10, end=5), "begin=10, end=5: .* end before they begin"),
    "no length": (lambda: sparse.gmp(".*", 0.5, begin=5, end=5), "begin=5, end=5: the schedule ends before it begins"),
    "every": (lambda: sparse.set_(".*", 0.5, end=5, every=0), "every=0"),
    "drop": (lambda: sparse.set_(".*", 0.5, end=100, drop=1.5), r"drop=1\.5 at step 0"),
    "first": (lambda: sparse.static(".*", 0.5, first="best"), "first='best': give one of random, magnitude, even"),
    "steps": (lambda: sparse.Group(".*", sparse.constant(0.5), (3, 3)), r"steps=\(3, 3\)"),
    "dense at once": (lambda: sparse.densified(sparse.static(".*", 0.5), 0), "step=0"),
    "erk of N:M": (lambda: sparse.static(".*", structure=sparse.NM(2, 4), distribution="erk"), "distribution='erk'"),
    "N:M": (lambda: sparse.NM(4, 4), "n=4, m=4"),
    "N:M divides": (lambda: init(sparse.static("blocks/out/kernel", structure=sparse.NM(2, 4))), "4 does not divide the 2 of axis 0"),
    "N:M axis": (lambda: init(sparse.static("blocks/up/kernel", structure=sparse.NM(2, 4, axis=2))), "axis=2 is none of its 2 axes"),
    "block divides": (lambda: init(sparse.static("blocks/up/kernel", 0.5, structure=sparse.Block((3, 4)))), "3 does not divide the 8"),
    "block axes": (lambda: init(sparse.static("blocks/out/kernel", 0.5, structure=sparse.Block((2, 2)))), "are 2 for the 3 axes"),
    "block length": (lambda: sparse.Block((0, 1)), r"lengths=\(0, 1\)"),
    "no group": (lambda: sparse.sparsify(optax.sgd(0.1)), "groups: give at least one"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_with_what_there_is(name):
    ask, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        ask()
