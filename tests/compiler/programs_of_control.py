"""Programs that index, draw, loop, branch and differentiate, and those that went wrong once."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from tests.compiler.registry import V, X, Y, floats, ints, program

# ---- rows by index ---------------------------------------------------------------------------------------------------
TABLE, IDS = floats(16, 8), ints(16, 4, 6)
OUTSIDE = np.array([0, -1, 15, 16, -16, -17, 99, 3], np.int32)


@program(TABLE, IDS)
def embedding(table, ids):
    return table[ids], jnp.take(table, ids, axis=0), jnp.take(table, ids % 8, axis=1), table[ids[0, 0]]


@program(TABLE, OUTSIDE)
def indices_outside(table, ids):
    modes = ("fill", "clip", "wrap")
    return [jnp.take(table, ids, axis=0, mode=mode) for mode in modes], table.at[ids].get(mode="fill", fill_value=7.0)


@program(TABLE, IDS, OUTSIDE)
def updates_by_index(table, ids, outside):
    rows = jnp.ones((4, 6, 8)) * ids[..., None]
    return (
        table.at[ids].add(rows),
        table.at[ids[:, 0]].set(rows[:, 0]),
        table.at[ids].max(rows / 9),
        table.at[ids[0]].mul(2.0),
        table.at[:, ids[0] % 8].add(1.0),
        table.at[outside].add(1.0),
        table.at[outside].set(5.0, mode="drop"),
        table.at[outside].add(1.0, mode="clip"),
    )


@program(X, ints(16, 8, 1), ints(16, 8, 16))
def along_an_axis(x, one, many):
    return (
        jnp.take_along_axis(x, one, 1),
        jnp.take_along_axis(x, many, 1),
        jnp.take_along_axis(x, many[:8] % 8, 0),
        x[jnp.arange(8), one[:, 0]],
    )


@program(TABLE, IDS)
def gradient_of_embedding(table, ids):
    return jax.grad(lambda t: jnp.sum(jnp.sin(t[ids]) * jnp.arange(8.0)[None, None]))(table)


@program(IDS, V)
def one_hot(ids, v):
    hot = jax.nn.one_hot(ids, 16)
    return hot, hot @ v, jnp.where(ids[..., None] == jnp.arange(16)[None, None], 1, 0), jnp.bincount(ids.reshape(-1), length=16)


# ---- randomness ------------------------------------------------------------------------------------------------------
@program(jax.random.key(3), ints(9))
def random_numbers(key, n):
    a, b, c, d = jax.random.split(jax.random.fold_in(key, n), 4)
    return (
        jax.random.bits(a, (8, 16)),
        jax.random.normal(b, (16, 16)),
        jax.random.bernoulli(c, 0.3, (8, 16)),
        jax.random.permutation(d, 16),
        jax.random.key_data(a),
    )


@program(X, jax.random.split(jax.random.key(0), 16))
def many_keys(x, keys):
    return jax.vmap(lambda k: jax.random.uniform(k, (8,)))(keys).T + x, keys[3]


@program(np.array([1, 2], np.uint32), X)
def dropout(seed, x):
    keep = jax.random.bernoulli(jax.random.wrap_key_data(seed), 0.5, x.shape)
    return jnp.where(keep, x / 0.5, 0)


# ---- control flow ----------------------------------------------------------------------------------------------------
@program(X, floats(3, 16, 16))
def scan_over_layers(x, weights):
    return lax.scan(lambda h, w: (jnp.tanh(h @ w), h.sum(1)), x, weights)


@program(X, floats(5, 8, 16))
def scan_backwards_with_constants(x, xs):
    def step(carry, row):
        total, n = carry
        return (total + row * x, n + 1), (row.max(), total)

    return lax.scan(step, (jnp.zeros_like(x), 0), xs, reverse=True, unroll=2)


@program(X)
def while_loops(x):
    grown = lax.while_loop(lambda c: c[0].sum() < 50, lambda c: (c[0] * c[0] + 1, c[1] + 1), (x, 0))
    return (
        grown,
        lax.fori_loop(0, 5, lambda i, y: y.at[i].set(y[i] * i), x),
        lax.fori_loop(0, jnp.int32(x[0, 0] * 0 + 3), lambda i, y: y * 2 + i, x),
    )


@program(X, jnp.int32(1))
def branches(x, which):
    return (
        lax.cond(which > 0, lambda a: a @ a.T, lambda a: a[:, :8] * 2, x),
        lax.switch(which, [lambda a: a.sum(0), lambda a: a.max(0), lambda a: a[0]], x),
        lax.cond(x.sum() > 1e9, lambda: x, lambda: jnp.zeros_like(x)),
    )


@program(X, V)
def maps(x, v):
    return (
        lax.map(lambda row: (row * v).sum(), x),
        jax.vmap(lambda row: jnp.outer(row, v))(x),
        lax.map(lambda row: row[::-1], x, batch_size=4),
    )


@program(floats(6, 8, 8))
def scan_of_scans(x):
    inner = lambda c, row: (c + row, c @ row)
    return lax.scan(lambda c, m: lax.scan(inner, c, m), jnp.zeros(8), x)


@program(X)
def associative_scan(x):
    return lax.associative_scan(jnp.multiply, x, axis=1), lax.associative_scan(jnp.maximum, x, axis=0)


# ---- autodiff --------------------------------------------------------------------------------------------------------
def network(params, x):
    h = jax.nn.gelu(x @ params["w"] + params["b"][None])
    return jnp.mean((h @ params["u"]) ** 2)


PARAMS = {"w": floats(16, 24), "b": floats(24), "u": floats(24, 8)}


@program(PARAMS, X)
def gradient(params, x):
    return jax.value_and_grad(network)(params, x)


@program(PARAMS, X)
def gradient_with_remat(params, x):
    return jax.grad(lambda p: jax.checkpoint(network)(p, x) + jax.checkpoint(network, policy=jax.checkpoint_policies.dots_saveable)(p, x))(
        params
    )


@program(floats(3, 16, 16), X)
def gradient_of_scan_with_remat(weights, x):
    layer = jax.checkpoint(lambda h, w: (h + jnp.tanh(h @ w), None), prevent_cse=False)
    return jax.value_and_grad(lambda ws: (lax.scan(layer, x, ws)[0] ** 2).sum())(weights)


@program(floats(3, 16, 16), X)
def gradient_of_remat_in_remat(weights, x):
    """A layer that is computed again whole, rows of which are computed again one by one."""

    def layer(h, w):
        row = jax.checkpoint(lambda r: jnp.tanh(r @ w), prevent_cse=False)
        return h + lax.scan(lambda n, r: (n, row(r)), None, h)[1], None

    again = jax.checkpoint(layer, prevent_cse=False)
    return jax.value_and_grad(lambda ws: (lax.scan(again, x, ws)[0] ** 2).sum())(weights)


@program(X, Y)
def forward_and_second_derivatives(x, t):
    f = lambda x: jnp.sum(jnp.sin(x) * x)
    return jax.jvp(f, (x,), (t,)), jax.jvp(jax.grad(f), (x,), (t,))


@jax.custom_vjp
def clipped(x):
    return jnp.clip(x, -1, 1)


clipped.defvjp(lambda x: (jnp.clip(x, -1, 1), x), lambda x, g: (g * (jnp.abs(x) < 2),))


@jax.custom_jvp
def softplus(x):
    return jnp.log1p(jnp.exp(x))


softplus.defjvp(lambda primals, tangents: (softplus(primals[0]), jax.nn.sigmoid(primals[0]) * tangents[0]))


@program(X)
def custom_derivatives(x):
    f = lambda x: (clipped(x) * softplus(x)).sum()
    return f(x), jax.grad(f)(x), clipped(x)


@program(X, ints(16, 8))
def cross_entropy(logits, labels):
    def loss(logits):
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()

    return jax.value_and_grad(loss)(logits)


@program(X)
def gradients_of_shape_changes(x):
    def f(x):
        parts = jnp.split(jnp.concatenate([x, x[::-1] * 2], 1), 4, 1)
        stacked = jnp.concatenate([p[:, None] for p in parts], 1).reshape(8, 32)
        return (jnp.sort(stacked, 1) * jnp.cumsum(stacked, 0)).max(1).sum() + jnp.pad(x, 1)[2:, 3:].prod(1).sum()

    return jax.grad(f)(x)


# ---- pytrees and structure -------------------------------------------------------------------------------------------
@program({"a": X, "b": (Y, None, [V])}, 2.5)
def nested_structures(tree, scalar):
    return {"sum": jax.tree.map(lambda a: a * scalar, tree), "same": tree["a"], "const": np.arange(4), "none": None}


@program(X)
def nested_jits(x):
    inner = jax.jit(functools.partial(jnp.add, 1))
    return inner(jax.jit(jnp.sin)(x)), jax.named_call(jnp.cos, name="c")(x)


@program(floats(6, 10), floats(10, 14), floats(3, 5))
def sizes_that_do_not_divide(x, w, odd):
    return x @ w, odd.sum(1), odd @ odd.T, jax.nn.softmax(odd), jnp.pad(odd, 1), x[:5, :7] * 2


@program(floats(8, 0), floats(0, 8), floats(1, 1))
def sizes_of_zero_and_one(a, b, c):
    return b.sum(1), a @ b, b * 2, c @ c, jnp.concatenate([b, b]), b.max(1)


# ---- found missing or wrong once ---------------------------------------------------------------------------------------
@program(TABLE, OUTSIDE)
def plain_indexing_clamps(table, ids):
    return table[ids]


@program(X, ints(16, 8, 16), Y)
def gradient_along_an_axis(x, many, w):
    return jax.grad(lambda x: (jnp.take_along_axis(x, many, 1) * w).sum())(x)


@program(floats(512, 8), ints(127, 16, dtype=np.int8))
def narrow_indices(table, ids):
    return jnp.take(table, ids, axis=0, mode="clip"), table[ids.astype(jnp.uint8)]


@program(np.zeros(2048, jnp.bfloat16))
def iota_in_half_precision(x):
    return x + jnp.arange(2048, dtype=jnp.bfloat16)


@program(X, ints(8, 4))
def named_values_and_subtraction(x, ids):
    named = lambda x: checkpoint_name(jnp.sin(x), "s").sum()
    policy = jax.checkpoint_policies.save_only_these_names("s")
    return jax.grad(jax.checkpoint(named, policy=policy))(x), x.at[ids].subtract(1.0)


@program(X)
def tiled(x):
    return jnp.tile(x, (2, 1)), jnp.tile(x, 2)


@program(X)
def gradient_of_stack(x):
    return jax.grad(lambda x: jnp.prod(jnp.stack([x, x * 2], 1).sum(0)))(x * 0.1), [row * 2 for row in x]


@program(floats(8, 0), floats(0, 8), X)
def sums_over_nothing(a, b, x):
    return a.sum(1), b.sum(0) + x[0, :8], a.sum(), b.sum((0, 1)) + x


@program(floats(8, 16, 32), 0.02 * floats(32, 4, 3, 8, seed=4), 0.02 * floats(4, 8, 32, seed=5))
def attention_block(x, wq, wo):
    """Blocks so large that XLA:CPU takes a reduction and what follows it into a library call, on some device meshes."""
    q, k, v = jnp.moveaxis(jnp.einsum("bsi,ihcd->bshcd", x, wq), -2, 0)
    p = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
    return jnp.einsum("bqhd,hdi->bqi", jnp.einsum("bhqk,bkhd->bqhd", p, v), wo)


@program(floats(64, 128).astype(jnp.bfloat16), floats(128, 64).astype(jnp.bfloat16))
def half_precision_products_of_large_blocks(a, b):
    return a @ b, jax.nn.softmax(a)


@program(np.arange(15, dtype=np.float32).reshape(5, 3), np.array([2], np.int32), np.ones(5, np.float32))
def one_update_in_a_padded_table(x, i, w):
    """XLA once wrote the row of one device into another's."""
    return x.at[:, i].add(1.0), w @ x, x.at[i].set(7.0), x.at[i, i].mul(3.0)


@program(floats(5, 0), floats(0, 6))
def products_of_nothing(x, y):
    return x @ y, (x @ y).sum(0), y.sum(0), jnp.concatenate([x, x], 1)


@program(floats(4, 4), floats(6, seed=1))
def gradients_of_branches(a, x):
    different = lambda x: jnp.sum(lax.cond(x[0] > 0, jax.nn.softmax, lambda x: jnp.ones_like(x), x) ** 2)
    twice = lambda x: jnp.sum(jax.checkpoint(lambda a, b: jnp.sin(a) * b)(x, x))
    return jax.grad(different)(x), jax.grad(twice)(x), jnp.linalg.slogdet(a + 3 * jnp.eye(4))[1], jnp.linalg.det(a)


@program(np.arange(8), X, V)
def examples_that_end_at_different_times(n, x, v):
    """vmap gives the `while` a condition for each example: it goes on while any holds."""
    doubled = jax.vmap(lambda n, x: lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, c[1] * 2, c[2]), (0, x, v)))(n, x)
    keyed = jax.vmap(lambda n: lax.fori_loop(0, n, lambda i, k: jax.random.fold_in(k, i), jax.random.key(0)))(n)
    nested = jax.vmap(jax.vmap(lambda x, n: lax.fori_loop(0, n, lambda i, c: c * x, 1.0), (0, None)))(x, n)
    return doubled, jax.random.key_data(keyed), nested, jax.vmap(lambda v: lax.while_loop(lambda c: c.sum() < v, lambda c: c + v, x))(v)


@program(X, True, floats(4, seed=1))
def nothing_happens(x, p, v):
    """Moves of no elements, branches that return what they are given."""
    same = lax.cond(p, lambda x: x, lambda x: x, x)
    return same, jnp.roll(x, 0, 0), jnp.concatenate([x[:0], x]), jnp.pad(x, ((0, 0), (1, 2)), mode="edge"), jnp.pad(v, (0, 0))


@program(floats(4, 4, 1).astype(jnp.bfloat16), floats(4, 4, 2, seed=1).astype(jnp.bfloat16), floats(4, 4, 70, seed=2).astype(jnp.float16))
def small_batches_of_products_in_a_wider_type(x, y, z):
    """XLA:CPU has no kernel for some of them, once they are padded."""
    return (
        jnp.einsum("abc,bau->acu", x, y, preferred_element_type=jnp.float32),
        jnp.einsum("abc,abd->acd", z, z, preferred_element_type=jnp.float32),
        jnp.einsum("abc,abc->a", y, y, preferred_element_type=jnp.float32),
        jnp.einsum("abc,abd->acd", jnp.int8(y * 9), jnp.int8(x * 9), preferred_element_type=jnp.int32),
    )
