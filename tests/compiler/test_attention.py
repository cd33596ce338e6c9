"""`wse.attention` is JAX's attention, with its gradients: on the wafer local where batch and heads fit, else round the ring."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wsejax as wse
from tests.compiler.programs import floats
from tests.fabric.grids import executed_byte_hops

SPEC = wse.WSE3.scaled(16, 16)
WEIGHTS = [floats(16, 64, seed=s) / 4 for s in (1, 2, 3)]


def block(attend, heads=4, kv_heads=4, **options):
    """The loss and gradients of a layer that projects, attends and projects back."""

    def loss(x, wq, wk, wv):
        split = lambda y, n: y.reshape(*y.shape[:2], n, -1)
        q, k, v = split(x @ wq, heads), split(x @ wk[:, : 16 * kv_heads], kv_heads), split(x @ wv[:, : 16 * kv_heads], kv_heads)
        return jnp.mean(jnp.sin(attend(q, k, v, **options)) ** 2)

    return jax.value_and_grad(loss, argnums=(0, 1, 2, 3))


CASES = {  # batch, tokens, options; whether the ring has to turn with 2x2 tiles
    "batch and heads fit": (4, 12, {"causal": True}, False),
    "one sequence": (1, 12, {"causal": True}, True),
    "odd batch": (3, 8, {}, True),
    "odd sequence": (1, 13, {"causal": True, "window": (5, 0)}, True),
    "grouped heads": (1, 8, {"kv_heads": 2}, True),
    "one key head": (1, 8, {"kv_heads": 1, "causal": True}, True),
    "batch fits, heads do not": (4, 12, {"kv_heads": 1, "causal": True}, True),
    "masked keys": (1, 12, {"kv_mask": np.arange(12)[None] < 7}, True),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_jax_with_the_same_bits_on_every_device_mesh(name):
    batch, tokens, options, ring = CASES[name]
    x = floats(batch, tokens, 16)
    kv_heads = options.get("kv_heads", 4)

    def plain(q, k, v, causal=False, window=None, kv_mask=None):
        mask = None if kv_mask is None else kv_mask[:, None, None, :]
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal, local_window_size=window, mask=mask)

    rest = {k: v for k, v in options.items() if k != "kv_heads"}
    want = jax.jit(block(plain, kv_heads=kv_heads, **rest))(x, *WEIGHTS)
    fun, bits = block(wse.attention, kv_heads=kv_heads, **rest), set()
    for devices in ((1, 1), (1, 2), (2, 2)):
        lowered = wse.jit(fun, wse.Wafer(SPEC, tiles=(2, 2), devices=devices)).lower(x, *WEIGHTS)
        kernels = {c.kernel for c in lowered.program.of_kind("kernel")}
        assert ring == ("ring_attention" in kernels) == ("ring_attention_gradient" in kernels)
        compiled = lowered.compile()  # which checks the HLO
        got = compiled(x, *WEIGHTS)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7), got, want)
        bits.add(b"".join(np.asarray(a).tobytes() for a in jax.tree.leaves(got)))
    assert len(bits) == 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7), jax.jit(fun)(x, *WEIGHTS), want)


def test_a_query_that_sees_nothing_gives_zero_and_vmap_is_a_larger_batch():
    q, k, v = (floats(2, 6, 2, 4, seed=s) for s in range(3))
    hidden = np.zeros((2, 6), bool)
    wafer = wse.Wafer(SPEC, tiles=(2, 2), devices=(2, 2))
    for wrap in (jax.jit, lambda f: wse.jit(f, wafer)):
        np.testing.assert_array_equal(wrap(lambda q: wse.attention(q, k, v, kv_mask=hidden))(q), 0)
        one = lambda q, k: wse.attention(q[None], k[None], v[:1])[0]
        np.testing.assert_allclose(wrap(jax.vmap(one))(q, k)[0], wse.attention(q[:1], k[:1], v[:1])[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("devices", [(2, 1), (4, 1)])
def test_what_travels_is_what_the_program_says(devices):
    q, k, v = (floats(1, 16, 2, 4, seed=s) for s in range(3))
    fun = jax.value_and_grad(lambda q, k, v: jnp.sum(wse.attention(q, k, v, causal=True) ** 2), argnums=(0, 1, 2))
    lowered = wse.jit(fun, wse.Wafer(SPEC, tiles=devices, devices=devices)).lower(q, k, v)
    assert {"ring_attention", "ring_attention_gradient"} <= {c.kernel for c in lowered.program.of_kind("kernel")}
    assert lowered.program.byte_hops == executed_byte_hops(lowered._jitted, devices, q, k, v)


def test_what_does_not_fit_is_refused():
    q, k = np.ones((1, 8, 4, 4), np.float32), np.ones((1, 8, 3, 4), np.float32)
    with pytest.raises(ValueError, match="heads a multiple of k's"):
        wse.attention(q, k, k)
    with pytest.raises(ValueError, match="they must be alike"):
        wse.attention(q, q, k)
    with pytest.raises(ValueError, match="kv_mask has shape"):
        wse.attention(q, q, q, kv_mask=np.ones((1, 3), bool))
