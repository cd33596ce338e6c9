"""What zero weights save in a modelled run: never more than the zeros, never less than nothing, and nothing where nothing streams."""

from __future__ import annotations

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import wsejax as wse
from tests.cost.streams import streamed
from tests.cost.test_model import SMALL, lower, train
from wsejax.cost.model import stacked_work
from wsejax.cost.sparsity import OTHERS, REST, Sparsity, sparser
from wsejax.hardware import CS2, CS3
from wsejax.kernels.work import Product, SparseProduct

SHARES = (0.0, 0.1, 0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95, 0.99, 0.999)


# ---- one product -----------------------------------------------------------------------------------------------------
@given(st.integers(1, 300_000), st.integers(1, 16_384), st.integers(1, 16_384), st.sampled_from([1, 4]), st.sampled_from([2, 4]),
       st.integers(0, 1), st.sampled_from([CS2, CS3]))  # fmt: skip
def test_a_sparse_product_is_never_slower_than_dense_nor_faster_than_its_zeros(tokens, k, n, batch, itemsize, streamed, system):
    sides = (n, k, tokens) if streamed == 0 else (tokens, k, n)
    product = Product(*sides, itemsize, batch)
    dense = product.price(system)
    cycles = [SparseProduct(product, s, streamed).price(system).cycles for s in SHARES]
    assert cycles[0] == dense.cycles
    for share, less, more in zip(SHARES[1:], cycles[1:], cycles, strict=False):
        assert dense.cycles * (1 - share) * (1 - 1e-12) <= less <= more
    assert SparseProduct(product, 0.9, streamed).price(system).flops in (dense.flops, (1.0 - 0.9) * dense.flops)


def test_many_tokens_come_near_the_bound_and_few_do_not():
    """A non-zero's look-up is shared by the columns of a PE: with few of them dense is faster."""

    def speedup(tokens, share):
        product = Product(tokens, 12288, 12288, 2)
        return product.price(CS2).cycles / SparseProduct(product, share, 1).price(CS2).cycles

    assert speedup(2**20, 0.75) > 3.9 and speedup(4096, 0.75) == 1.0


def test_the_price_is_a_function_of_sparsity_that_can_be_mapped_and_differentiated():
    cycles = lambda s, system: SparseProduct(Product(2**20, 4096, 4096, 2), s, 1).price(system).cycles
    shares = jnp.array([0.3, 0.8, 0.97])
    mapped, slopes = jax.jit(jax.vmap(jax.value_and_grad(cycles), (0, None)))(shares, CS2)
    np.testing.assert_allclose(mapped, [cycles(float(s), CS2) for s in shares], rtol=1e-5)
    assert slopes[1] == pytest.approx((cycles(0.8001, CS2) - cycles(0.7999, CS2)) / 2e-4, rel=1e-2) and slopes[1] < 0


# ---- programs --------------------------------------------------------------------------------------------------------
@functools.cache
def trained() -> wse.Lowered:
    return train(batch=4096)  # of tiny layers many tokens, so that their products are worth being sparse


def told(found: wse.Cost) -> Sparsity:
    assert found.sparsity is not None
    return found.sparsity


def short(name: str) -> str:
    """A path without what it begins and ends with in this program."""
    return name.removeprefix("params/").removesuffix("/value").removesuffix("/kernel")


@functools.cache
def streaming() -> wse.Program:
    """The same with the streams of a cluster's program, whose loads are named as the weights are."""
    program = trained().program
    number = {n: value for value, n in reversed(list(program.reads.items()))}
    weights = tuple(dataclasses.replace(a, number=number[n]) for n, a in enumerate(program.weights))
    made = streamed(dataclasses.replace(program, weights=weights), SMALL.layers)
    loads = {a.size_bytes for call in made.of_kind("stream") for a in call.ins}
    assert len(loads) > 1
    again = lambda a: dataclasses.replace(a, number=next((w.number for w in weights if w.shape[1:] == a.shape or w.shape == a.shape), -1))
    calls = tuple(dataclasses.replace(c, ins=tuple(map(again, c.ins))) if c.kind == "stream" else c for c in made.calls)
    return dataclasses.replace(made, calls=calls)


PROGRAMS = {"no streams": lambda: trained(), "streams": lambda: streaming()}


@pytest.mark.parametrize(("name", "system"), [("no streams", CS2), ("streams", CS3)])
def test_a_step_is_faster_the_more_zeros_and_below_the_bound(name, system):
    program = PROGRAMS[name]()
    dense = wse.cost(program, system, execution="streamed")
    before = math.inf
    for share in (0.0, 0.75, 0.99):
        found = wse.cost(program, system, execution="streamed", weight_sparsity=share)
        saved = told(found)
        assert (saved.step.seconds, saved.step.dense_seconds) == (found.step_seconds, dense.step_seconds)
        assert found.step_seconds <= before and 1.0 <= saved.step.speedup <= 1 / (1 - share)
        assert all(1.0 - 1e-9 <= part.speedup <= part.bound * (1 + 1e-9) for part in saved.parts)
        if share == 0.0:
            assert found.step_seconds == dense.step_seconds and found.price == dense.price and found.lines == dense.lines
        before = found.step_seconds
        of_parts = math.fsum(part.seconds for part in saved.parts)
        assert of_parts == pytest.approx(found.compute_seconds, rel=1e-6)
    assert saved.sent_bytes < 0.5 * saved.dense_bytes
    assert found.price.flops < dense.price.flops


def test_attention_tables_norms_and_gradients_of_weights_stay_dense():
    found = told(wse.cost(trained(), CS2, execution="streamed", weight_sparsity=0.99))
    parts = {part.name: part for part in found.parts}
    assert {short(name) for name in parts} >= {"blocks/attention/q", "blocks/mlp/up", "head"}
    assert not any("embedding" in name for name in parts)
    assert parts[OTHERS].speedup == parts[REST].speedup == 1.0
    # of three products of a weight one is its own gradient: forward and that of the input are sparse
    program = trained().program
    q = [short(name) for name in program.weight_names].index("blocks/attention/q")
    reading = [c for c in program.calls if c.primitive == "dot_general" and any(program.reads.get(a.number) == q for a in c.ins)]
    sparse = sparser(program, [0.9 * (n == q) for n in range(len(program.weights))])
    changed = [c for c in sparse.calls if any(isinstance(w, SparseProduct) for w in c.work)]
    assert len(changed) == len(reading) >= 2


def test_resident_weights_do_not_cross_the_wire_so_nothing_is_saved():
    small = train()
    dense, sparse = wse.cost(small, CS3), wse.cost(small, CS3, weight_sparsity=0.9)
    assert dense.execution == "resident" and dataclasses.replace(sparse, sparsity=None) == dense
    assert told(sparse).step.speedup == 1.0 and "saves nothing of a resident program" in str(told(sparse))
    assert sparse.to_dict()["weight_sparsity"]["execution"] == "resident" and dense.to_dict()["weight_sparsity"] is None


def test_where_a_non_zero_costs_too_much_the_product_is_done_dense():
    found = told(wse.cost(train(), CS3, execution="streamed", weight_sparsity=0.5))
    sparse = [part for part in found.parts if part.sparsity]
    assert sparse and all(part.slower and part.seconds == part.dense_seconds < part.sparse_seconds for part in sparse)


def test_a_weight_crosses_the_link_dense_until_half_of_it_is_zero():
    bytes_of = lambda s: told(wse.cost(trained(), CS3, execution="streamed", weight_sparsity=s))
    assert bytes_of(0.4).sent_bytes == bytes_of(0.4).dense_bytes
    program = trained().program
    tables = 2 * sum(w.size_bytes for w, name in zip(program.weights, program.weight_names, strict=True) if "embedding" in name)
    matrices = bytes_of(0.9).dense_bytes - tables
    assert bytes_of(0.9).sent_bytes == pytest.approx(tables + 2 * (1 - 0.9) * matrices, rel=1e-3)


def test_weights_are_named_by_regular_expressions_and_masks():
    program = trained().program
    cost = functools.partial(wse.cost, program, CS2, execution="streamed")
    sparse = lambda given: {short(p.name): p.sparsity for p in told(cost(weight_sparsity=given)).parts if p.sparsity}
    by_name = sparse({"mlp/up": 0.9, "mlp": 0.95})
    assert by_name == {"blocks/mlp/up": 0.9, "blocks/mlp/gate": 0.95, "blocks/mlp/down": 0.95}
    n = [short(name) for name in program.weight_names].index("blocks/mlp/up")
    mask = np.zeros(program.weights[n].shape, bool)
    mask[..., ::8] = True
    assert sparse({"blocks": {"mlp": {"up": {"kernel": mask}, "down": None}}}) == {"blocks/mlp/up": 1 - 1 / 8}


def test_its_work_stacks_as_that_of_any_program():
    shapes = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((4096, 4096), (2**20, 4096))]
    product = lower(lambda w, x: x @ w, *shapes).program
    program = sparser(product, [0.9])
    ((stacked, times),) = stacked_work(program)
    assert isinstance(stacked, SparseProduct) and stacked.sparsity.tolist() == [0.9] and times.tolist() == [1]
    assert wse.cost(program, CS2).price.cycles < 0.5 * wse.cost(product, CS2).price.cycles


def test_the_report_is_data():
    found = wse.cost(streaming(), CS2, weight_sparsity=0.9)
    data = json.loads(json.dumps(found.to_dict()))["weight_sparsity"]
    assert data["step"]["speedup"] == told(found).step.speedup and data["modelled"] is True
    assert f"x {told(found).step.speedup:.3g}" in str(told(found))


def test_a_program_of_a_cluster_streams_less():
    """The real thing: weights in MemoryX, a layer at a time."""

    def step(weights, x):
        loss = lambda weights: jnp.square(jax.lax.scan(lambda h, w: (jnp.tanh(h @ w["up"]) @ w["down"], None), x, weights)[0]).sum()
        return jax.tree.map(lambda w, g: w - 0.1 * g, weights, jax.grad(loss)(weights))

    weights = {"up": jax.ShapeDtypeStruct((3, 64, 256), jnp.bfloat16), "down": jax.ShapeDtypeStruct((3, 256, 64), jnp.bfloat16)}
    cluster = wse.Cluster(wse.Wafer(wse.WSE3, tiles=(4, 4), devices=(1, 1)), 1)
    made = wse.jit(step, cluster, donate_argnums=0, streamed_argnums=0, execution="streamed")
    lowered = made.lower(weights, jax.ShapeDtypeStruct((2**19, 64), jnp.bfloat16))
    assert sorted(lowered.program.weight_names) == ["down", "up"]
    dense, found = wse.cost(lowered, CS2), wse.cost(lowered, CS2, weight_sparsity={"up": 0.95})
    assert dense.streamed is not None and found.streamed is not None
    up_bytes = 2 * 3 * 64 * 256 * 2  # in for both passes
    assert dense.streamed.in_bytes - found.streamed.in_bytes == pytest.approx(up_bytes * (1 - 2 * 0.05), rel=1e-3)
    assert found.streamed.out_bytes == dense.streamed.out_bytes, "gradients are dense"
    assert found.step_seconds < dense.step_seconds


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        (1.0, r"weight_sparsity=1.0: a share of zeros"),
        (-0.1, "at least 0"),
        (math.nan, "less than 1"),
        (True, "is a number"),
        ("half", "is a number"),
        ({"mlp": 1.5}, r"weight_sparsity\['mlp'\]=1.5"),
        ({"conv": 0.5}, "matches no weight that a product reads; they are params"),
        ({"tokens/embedding": 0.5}, "matches no weight"),
        ({"(": 0.5}, "no regular expression"),
        ({"mlp": np.ones(3)}, "has 3 entries"),
        ({"mlp/up": np.zeros((3, 64, 96))}, "less than 1"),
    ],
)
def test_what_is_no_sparsity_is_refused(given, hint):
    with pytest.raises(ValueError, match=hint):
        wse.cost(trained().program, weight_sparsity=given)


def test_a_program_without_weights_is_refused():
    bare = dataclasses.replace(trained().program, weights=(), weight_names=(), reads={})
    with pytest.raises(ValueError, match="does not say which arguments are weights"):
        wse.cost(bare, weight_sparsity=0.5)


def test_what_a_loop_carries_is_no_weight():
    """The first state is an argument, which the loop's products read as it is: it is no weight, and its products stay dense."""

    def run(w, h):
        return jax.lax.scan(lambda h, _: (h @ w, None), h, length=3)[0]

    program = lower(run, *[jax.ShapeDtypeStruct((64, 64), jnp.float32)] * 2).program
    (product,) = (call for call in program.calls if call.primitive == "dot_general")
    assert [program.reads.get(a.number) for a in product.ins] == [None, program.weight_names.index("argument 0")]
