"""`wse.cost`: floating-point operations as JAX counts them, prices that follow the machine, and bounds where lengths are unknown."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import roofline

import wsejax as wse
from models.decoder import abstract_train_step, decoder_config
from models.presets import find
from models.transformer import Decoder, DecoderConfig
from wsejax.cost.model import price, seconds, stacked_work

SMALL = decoder_config(dict(layers=3, width=64, heads=4, kv_heads=2, head_width=16, ffn_width=96, vocab_size=96, context=64))


def lower(f, *args, tiles=(4, 4), **options):
    return wse.jit(f, wse.Wafer(wse.WSE3, tiles=tiles, devices=(1, 1)), **options).lower(*args)


def train(config: DecoderConfig = SMALL, batch: int = 8, seq: int = 32, tiles=(4, 4)) -> wse.Lowered:
    step, state = abstract_train_step(config, optax.adamw(1e-3))
    return lower(step, state, jax.ShapeDtypeStruct((batch, seq + 1), jnp.int32), tiles=tiles, donate_argnums=0)


class Mlp(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.one, self.two = nnx.Linear(64, 256, rngs=rngs), nnx.Linear(256, 32, rngs=rngs)

    def __call__(self, x):
        return self.two(nnx.gelu(self.one(x)))


class Attention(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.inner = nnx.MultiHeadAttention(4, 64, decode=False, rngs=rngs)

    def __call__(self, x):
        return self.inner(x)


class Convolutions(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.one, self.two = nnx.Conv(3, 64, (3, 3), rngs=rngs), nnx.Conv(64, 64, (3, 3), strides=2, rngs=rngs)
        self.three, self.four = (
            nnx.Conv(64, 64, (3, 3), feature_group_count=64, rngs=rngs),
            nnx.ConvTranspose(64, 16, (3, 3), strides=2, rngs=rngs),
        )

    def __call__(self, x):
        return self.four(self.three(nnx.relu(self.two(nnx.relu(self.one(x))))))


MODELS = {"mlp": (Mlp, (128, 64)), "attention": (Attention, (8, 32, 64)), "convolutions": (Convolutions, (8, 16, 16, 3))}


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "gradient"])
@pytest.mark.parametrize("name", MODELS)
def test_flops_are_those_of_jax_roofline(name: str, backward: bool) -> None:
    """Within 1%, as asked."""
    module, shape = MODELS[name]
    graph, params = nnx.split(nnx.eval_shape(lambda: module(nnx.Rngs(0))))
    forward = lambda params, x: nnx.merge(graph, params)(x)
    f = jax.grad(lambda params, x: (forward(params, x) ** 2).sum()) if backward else forward
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    _, jax_counts = roofline.roofline(f)(params, x)
    ours = wse.cost(lower(f, params, x)).price.flops
    assert ours == pytest.approx(jax_counts.unfused_flops, rel=0.01)


def test_flops_of_a_whole_step_are_six_a_weight_and_token() -> None:
    """6 N + 12 layers width seq (full attention), and what remat computes again, is 8 N; the optimiser's share is small."""
    config = dataclasses.replace(SMALL, width=256, heads=4, kv_heads=4, head_width=64, ffn_width=1024, vocab_size=512, remat="none")
    dims = {k: getattr(config, k) for k in ("layers", "width", "heads", "kv_heads", "head_width", "ffn_width", "vocab_size", "context")}
    want = wse.LLM.from_dict(dims).train_flops_per_token(32) * 64 * 32
    assert wse.cost(train(config, 64)).price.flops == pytest.approx(want, rel=0.05)


def test_a_price_does_not_depend_on_tiles_or_on_scan() -> None:
    """The grid that is priced is the machine's. Layouts come from the tiles: where 16 do not divide a batch of 8 some data moves that
    else need not. A loop is its body as often."""
    costs = [wse.cost(train(tiles=tiles)).price.cycles for tiles in ((1, 1), (2, 2), (4, 4), (8, 8), (16, 16))]
    assert costs[1:] == pytest.approx(costs[:1] * 4, rel=0.25)
    assert costs[1:4] == pytest.approx(costs[:1] * 3, rel=0.05)

    def layers(x, ws, unroll):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws, unroll=unroll)[0]

    x, ws = jax.ShapeDtypeStruct((64, 64), jnp.float32), jax.ShapeDtypeStruct((5, 64, 64), jnp.float32)
    looped = wse.cost(lower(lambda x, ws: layers(x, ws, 1), x, ws)).price

    def unrolled(x, ws):
        for n in range(5):
            x = jnp.tanh(x @ ws[n])
        return x

    assert wse.cost(lower(unrolled, x, ws)).price.cycles == pytest.approx(looped.cycles, rel=0.05)


def test_the_pure_function_is_the_same_price() -> None:
    lowered = train()
    own = wse.cost(lowered).price
    pure = jax.jit(price)(stacked_work(lowered), wse.CS3)
    for field in dataclasses.fields(own):
        assert float(getattr(pure, field.name)) == pytest.approx(float(getattr(own, field.name)), rel=1e-4), field.name


@functools.cache
def work():
    return stacked_work(train())


STEP_SECONDS = jax.jit(seconds)


def test_gradients_are_finite_differences() -> None:
    """Of step time with respect to the machine, link width first."""
    fields = ["link_bits", "clock_hz", "hop_cycles", "gemm_fp32_fma_per_cycle", "launch_cycles", "wavelet_cycles"]
    with jax.enable_x64(True):
        machine = jax.tree.map(lambda x: jnp.float64(x), wse.CS3)
        slopes = jax.jit(jax.grad(seconds, argnums=1))(work(), machine)
        for field in fields:
            at = float(getattr(wse.CS3, field))
            low, high = (float(STEP_SECONDS(work(), machine.replace(**{field: jnp.float64(at * k)}))) for k in (0.999, 1.001))
            assert float(getattr(slopes, field)) == pytest.approx((high - low) / (0.002 * at), rel=2e-3), field
            assert high != low, field


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["clock_hz", "link_bits", "gemm_fp32_fma_per_cycle", "fp32_copies_per_cycle"]), st.floats(1.01, 8.0))
def test_a_better_machine_is_never_slower(field: str, factor: float) -> None:
    own = float(STEP_SECONDS(work(), wse.CS3))
    assert float(STEP_SECONDS(work(), wse.CS3.replace(**{field: getattr(wse.CS3, field) * factor}))) <= own * (1 + 1e-6)


def test_defects_cost_hops_only() -> None:
    lowered = train()
    own, stretched = wse.cost(lowered), wse.cost(lowered, wse.CS3.replace(dilation=1.2, congestion=2.0))
    assert stretched.price.cycles > own.price.cycles
    assert stretched.price.flops == own.price.flops
    spec = wse.WSE3.scaled(64, 64)
    wafer = wse.Wafer(spec, wse.DefectMap.uniform(spec, dead_pe_fraction=0.01, seed=0), tiles=(2, 2), policy="largest", max_dilation=3)
    system = wse.CS3.of(wafer)
    assert (system.rows, system.cols) == (wafer.remap.rows, wafer.remap.cols)
    assert system.dilation == wafer.remap.mean_dilation
    assert system.congestion == max(1, wafer.routes.congestion)


def test_unknown_lengths_give_bounds_not_guesses() -> None:
    def f(x, n):
        y = jax.lax.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, jnp.tanh(c[1] @ c[1])), (0, x))[1]
        return jax.lax.cond(n > 3, lambda y: y @ y, lambda y: y + 1.0, y)

    lowered = lower(f, jax.ShapeDtypeStruct((64, 64), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32))
    unknown, ten, twenty = wse.cost(lowered), wse.cost(lowered, while_trips=10), wse.cost(lowered, while_trips=20)
    assert unknown.most_step_seconds == np.inf
    assert unknown.to_dict()["most_step_seconds"] is None
    assert unknown.step_seconds < ten.step_seconds < ten.most_step_seconds < np.inf
    assert twenty.price.flops - ten.price.flops == ten.price.flops - wse.cost(lowered, while_trips=0).price.flops > 0
    with pytest.raises(wse.UnknownTripsError, match="while_trips"):
        stacked_work(lowered)
    for wrong in (-1, 2.5, "3", True, {"nowhere.py:1 (f)": 3}):
        with pytest.raises(ValueError, match="while_trips"):
            wse.cost(lowered, while_trips=wrong)
    assert wse.cost(lowered, while_trips=np.int64(10)).step_seconds == ten.step_seconds


def test_bounds_of_branches() -> None:
    """A branch without work is one, and branches of one source line are those of their own `cond`."""
    x, flag = jax.ShapeDtypeStruct((64, 64), jnp.float32), jax.ShapeDtypeStruct((), jnp.bool_)
    product = wse.cost(lower(lambda x: x @ x, x)).price.cycles
    some = wse.cost(lower(lambda p, x: jax.lax.cond(p, lambda x: x @ x, lambda x: x, x), flag, x))
    read = some.price.cycles  # of the flag, a number
    assert read < 20
    assert some.most_cycles == pytest.approx(product + read)
    pick = lambda p, f, g, x: jax.lax.cond(p, f, g, x)
    one, three = lambda x: x @ x, lambda x: x @ x @ x @ x
    twice = wse.cost(lower(lambda p, q, x: pick(q, one, three, pick(p, three, one, x)), flag, flag, x))
    assert (twice.price.cycles, twice.most_cycles) == (pytest.approx(2 * product + 2 * read), pytest.approx(6 * product + 2 * read))


def test_what_moves_in_the_emulation_moves_in_the_price() -> None:
    table, rows, x = (jax.ShapeDtypeStruct(s, d) for s, d in (((512, 64), jnp.float32), ((128,), jnp.int32), ((64, 64), jnp.float32)))
    programs = [
        (lambda e, i: e[i], (table, rows)),
        (lambda e, i: jnp.take_along_axis(e, jnp.broadcast_to(i[:, None], (128, 64)), 0), (table, rows)),
        *((f, (x,)) for f in (
            lambda x: x[5], lambda x: x[63:], lambda x: jnp.roll(x, 1, 0), lambda x: jnp.pad(x, ((1000, 0), (0, 0))),
            lambda x: jnp.cumsum(x, 0), lambda x: jnp.argmax(x, 1), lambda x: jax.lax.top_k(x, 3), lambda x: jnp.sort(x, 0),
            lambda x: jnp.fft.fft(x, axis=0), jnp.linalg.cholesky,
        )),
    ]  # fmt: skip
    for f, args in programs:
        program = lower(f, *args).program
        assert wse.cost(program).price.cycles > 0
        if any(c.byte_hops for c in program.calls if c.primitive != "result"):
            assert wse.cost(program).price.byte_hops > 0, program


def test_a_factorisation_counts_its_shorter_side_and_a_solve_its_right_hand_sides() -> None:
    flops = lambda f, *shapes: wse.cost(lower(f, *(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes))).price.flops
    wide, high = (flops(lambda x: jnp.linalg.qr(x, mode="r"), shape) for shape in ((8, 1000), (1000, 8)))
    assert 0.2 < wide / high < 5
    one, many = (flops(lambda a, b: jax.scipy.linalg.solve_triangular(a, b), (64, 64), (64, n)) for n in (1, 64))
    assert many == pytest.approx(64 * one, rel=0.1)


def test_what_is_not_on_the_fabric_is_priced_as_one_pe() -> None:
    on_the_host = lambda x: jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="sequential")
    x = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    lowered = wse.jit(on_the_host, wse.Wafer(wse.WSE3, tiles=(2, 2), devices=(1, 1)), strict=False).lower(x)
    assert float(price(stacked_work(lowered), wse.CS3).cycles) == pytest.approx(wse.cost(lowered).price.cycles, rel=1e-5)
    assert wse.cost(lowered).price.compute_cycles >= 64 * 64 / wse.CS3.fp32_copies_per_cycle


def test_it_reads_as_a_report() -> None:
    cost = wse.cost(train(), tokens=8 * 32)
    data = json.loads(json.dumps(cost.to_dict()))
    assert data["modelled"] is True
    assert sum(line["cycles"] for line in data["lines"]) == pytest.approx(data["price"]["cycles"])
    assert data["step_seconds"] * data["tokens_per_second"] == pytest.approx(8 * 32)
    assert 0 < data["mfu"] < 1 and 0 < data["utilisation"] <= 1
    assert sum(p.cycles for p in cost.by_source().values()) == pytest.approx(cost.price.cycles)
    assert sum(p.cycles for p in cost.by_kernel().values()) == pytest.approx(cost.price.cycles)
    shares = [share for _, share in cost.costliest(1000)]
    assert sum(shares) == pytest.approx(1) and shares == sorted(shares, reverse=True)
    assert cost.watts == pytest.approx(cost.joules / cost.step_seconds)
    with pytest.raises(ValueError, match="execution='fast'"):
        wse.cost(train(), execution="fast")
    with pytest.raises(ValueError, match="tokens=0"):
        wse.cost(train(), tokens=0)


def test_the_critical_path_is_the_longest_chain() -> None:
    """Two chains of products that meet: the longer one and the last product are on the path. A loop is its trips."""
    x = jax.ShapeDtypeStruct((256, 256), jnp.float32)
    one = wse.cost(lower(lambda x: x @ x, x)).price.cycles

    def f(x):
        a = jnp.sin(x) @ x
        b = x @ x @ x @ x
        return a @ b

    cost = wse.cost(lower(f, x))
    assert cost.critical_cycles == pytest.approx(4 * one)
    assert sum(cost.critical.values()) == pytest.approx(4 * one)
    assert one < cost.price.cycles - cost.critical_cycles < 2 * one  # the other chain: a sine and a product

    looped = lambda x: jax.lax.scan(lambda c, _: (c @ x, x @ x), x, None, length=5)[0]
    cost = wse.cost(lower(looped, x))
    assert cost.critical_cycles == pytest.approx(5 * one)
    assert cost.price.cycles == pytest.approx(10 * one)
    whole = wse.cost(train())
    assert sum(whole.critical.values()) == pytest.approx(whole.critical_cycles)
    assert 0.3 * whole.price.cycles < whole.critical_cycles < 0.9 * whole.price.cycles  # weights' gradients wait for nobody
    sources = [source for _, source in whole.critical]
    assert any("step" in s for s in sources) and any("attend" in s for s in sources)


def test_405b_from_shapes() -> None:
    """Nothing is allocated: 405 billion parameters in bfloat16 are 811 GB."""
    dims = find("llama-3.1-405b")
    config = decoder_config(dims, dtype="bfloat16", param_dtype="bfloat16")
    step, state = abstract_train_step(config, optax.adamw(1e-4))
    lowered = lower(step, state, jax.ShapeDtypeStruct((1, 8193), jnp.int32), tiles=(16, 16), donate_argnums=0)
    cost = wse.cost(lowered, tokens=8192)
    want = wse.LLM.from_dict(dims).train_flops_per_token(8192) * 8192
    assert 1.2 < cost.price.flops / want < 1.5  # with what remat computes again
    assert cost.execution == "streamed"
    assert cost.io_seconds == pytest.approx(2 * 405e9 * 2 / 150e9, rel=0.01)
    parameters = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(state["params"]))
    assert parameters == pytest.approx(405e9, rel=0.01)


def test_the_decoder_is_what_it_says() -> None:
    model = Decoder(SMALL, rngs=nnx.Rngs(0))
    tokens = jax.random.randint(jax.random.key(0), (2, 40), 0, 96)
    logits = model(tokens)
    changed = model(tokens.at[:, 30].set(5))
    np.testing.assert_array_equal(logits[:, :30], changed[:, :30])  # causal
    assert not np.allclose(logits[:, 30:], changed[:, 30:])
    blocks = dataclasses.replace(SMALL, query_block=16)
    np.testing.assert_allclose(Decoder(blocks, rngs=nnx.Rngs(0))(tokens), logits, rtol=2e-5, atol=2e-5)
    tx = optax.sgd(0.5)
    losses = []
    for block in (128, 8):
        step, _ = abstract_train_step(SMALL, tx, loss_block=block)
        params = nnx.split(Decoder(SMALL, rngs=nnx.Rngs(0)))[1]
        state, loss = jax.jit(step)({"params": params, "opt": tx.init(params)}, tokens)
        losses += [float(loss), float(jax.jit(step)(state, tokens)[1])]
    assert losses[:2] == pytest.approx(losses[2:], rel=1e-5)
    assert losses[1] < losses[0]
