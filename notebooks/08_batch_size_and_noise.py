# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Batch size and gradient noise
#
# A wafer takes batches of any size, and is the better used the larger they are. But a batch twice as large does not learn twice as much:
# its gradient is an average, and beyond some size there is little chance left in it to average out. McCandlish et al. ("An Empirical
# Model of Large-Batch Training", 2018) measure that chance by the *gradient noise scale*
#
# $$ B_{simple} = \mathrm{tr}(\Sigma)\ /\ |G|^2, $$
#
# the variance of one example's gradient over the squared mean gradient, and find that steps $S$ and examples $E$ to the same loss follow
# $(S / S_{min} - 1)(E / E_{min} - 1) = 1$.
#
# **Question.** Can the noise within single steps say which batch size pays, and which one is cheapest on a wafer? Steps below are measured
# on this host (they do not depend on the machine); seconds and dollars are *modelled*.

# %%
# %matplotlib inline
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from IPython.display import Markdown

import wsejax as wse
from wsejax.cost.converged import TargetNotReachedError, cheapest, converged, steps_to
from wsejax.report.batch_size import plot_batch_sizes
from wsejax.training import load_corpus, next_token_loss, train_batches, validation_batches
from wsejax.training.accumulate import value_and_grad
from wsejax.training.batch_size import fit_trade_off, scaled_rate
from wsejax.training.noise import NoiseScale, squared_norms

jax.config.update("jax_platforms", "cpu")
wse.request_cpu_devices(1)  # first of all, before any array
pictures = Path(tempfile.mkdtemp())

# %% [markdown]
# ## A noise that is known
#
# Of a quadratic loss with added noise both $|G|^2$ and $\mathrm{tr}(\Sigma)$ are known. Each batch of 16 is cut into four micro-batches, as
# a train step may do anyway to save memory; the squared norms of their gradients and of the whole one tell signal from noise. A single step
# says little, and the ratio of a single step next to nothing: it is the ratio of two *means* that converges.

# %%
hessian, deviation = np.linspace(0.2, 2, 32, dtype=np.float32), np.linspace(1, 3, 32, dtype=np.float32)
place = jnp.full(32, 0.5)
true_scale = float((deviation**2).sum() / ((hessian * place) ** 2).sum())


def quadratic(x, noise, key=None):
    return (0.5 * (hessian * x * x).sum() + noise @ x).mean()


measured = value_and_grad(quadratic, micro_batches=4, weigh=lambda noise: jnp.float32(len(noise)), squares=squared_norms)
draws = deviation * np.random.default_rng(0).normal(size=(2000, 16, 32)).astype(np.float32)
metrics = jax.device_get(jax.jit(jax.vmap(lambda noise: measured(place, noise)[0][1]))(draws))
known, course = NoiseScale(), []
for row in (dict(zip(metrics, values, strict=True)) for values in zip(*metrics.values(), strict=True)):
    known.add(row)
    if len(known) % 20 == 0:
        course.append((len(known), known.b_simple, known.standard_error))
steps, scales, errors = np.array(course).T

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
left.hist(metrics["gradient_noise"] / metrics["gradient_signal"], bins=np.linspace(-200, 200, 81), color="#9dbfe3")
left.axvline(true_scale, color="#c0182b", label="the truth")
left.set(xlabel="noise over signal of one step", ylabel="steps", title="One step")
right.fill_between(steps, scales - errors, scales + errors, color="#9dbfe3", label="one standard error")
right.plot(steps, scales, color="#1f5fa8", label="ratio of means")
right.axhline(true_scale, color="#c0182b", label="the truth")
right.set(xlabel="steps", ylabel="noise scale", ylim=(0, 3 * true_scale), title="Many steps")
for axes in (left, right):
    _ = axes.legend()

# %% [markdown]
# ## A model of text
#
# The next byte from the last one, by two matrices; text that every Python carries. Each batch size is trained at six learning rates at once
# (a `vmap`), and the rate that first reaches the target is kept: comparing batch sizes at one learning rate would measure the rate.

# %%
BATCHES, RATES, TARGET, CONTEXT, WIDTH = (2, 4, 8, 16, 32, 64), 2.0 ** np.arange(-2, 4), 2.8, 4, 24
EXAMPLES, MOST_STEPS = 12_800, 1600
corpus = load_corpus(context=CONTEXT)
held_out = validation_batches(corpus, batch_size=256, batches=1)[0]
keys = jax.random.split(jax.random.key(0))
initial = {"table": 0.3 * jax.random.normal(keys[0], (256, WIDTH)), "head": 0.3 * jax.random.normal(keys[1], (WIDTH, 256))}


def loss(params, batch, key=None):
    return next_token_loss(params["table"][batch["tokens"]] @ params["head"], batch["targets"])


def train_step(params, batch, rate):
    """Plain SGD."""
    tx = optax.sgd(rate)
    value, gradients = jax.value_and_grad(loss)(params, batch)
    return optax.apply_updates(params, tx.update(gradients, tx.init(params))[0]), value


def train(batch_size):
    """Validation losses, [measurement, rate], and the steps they were measured at."""
    count = min(MOST_STEPS, EXAMPLES // batch_size)
    every = max(1, count // 50)
    source = train_batches(corpus, batch_size=batch_size, seed=0)
    drawn = [next(source) for _ in range(count // every * every)]
    stacked = {name: np.stack([batch[name] for batch in drawn]).reshape(-1, every, batch_size, CONTEXT) for name in drawn[0]}

    def measure(params, batches):
        def steps(params, rate):
            return jax.lax.scan(lambda p, batch: (train_step(p, batch, rate)[0], None), params, batches)[0]

        params = jax.vmap(steps)(params, jnp.asarray(RATES, jnp.float32))
        return params, jax.vmap(lambda p: loss(p, held_out))(params)

    many = jax.tree.map(lambda x: jnp.stack([x] * len(RATES)), initial)
    losses = np.asarray(jax.jit(lambda p, b: jax.lax.scan(measure, p, b)[1])(many, stacked))
    return np.arange(1, len(losses) + 1) * every, losses


first = float(loss(initial, held_out))
curves = {batch: train(batch) for batch in BATCHES}

# %%
best, runs, to_target = {}, {}, {}
for batch, (at, losses) in curves.items():
    reached = {}
    for rate, column in zip(RATES, losses.T, strict=True):
        rows = [{"step": 0, "validation_loss": first}]
        rows += [{"step": int(n), "validation_loss": float(x)} for n, x in zip(at, column, strict=True)]
        try:
            reached[float(rate)] = steps_to(rows, TARGET), rows
        except TargetNotReachedError:
            continue
    if reached:
        best[batch] = min(reached, key=lambda rate, reached=reached: reached[rate][0].steps)
        to_target[batch], runs[batch] = reached[best[batch]]
        print(f"batch {batch:3}: best learning rate {best[batch]:5g}, {to_target[batch].steps:6.0f} steps")
curve = fit_trade_off([(n.steps, n.steps * batch) for batch, n in to_target.items()])
print(f"critical batch size {curve.critical_batch:.3g} sequences, standard error {curve.relative_error:.0%}")

# %% [markdown]
# ## What single steps know
#
# One run, at a batch of 32 in eight micro-batches, tells its noise scale while it goes: two scalars a step. Beside it the learning rates
# that were best at each batch size, and what the rules make of the best one at the smallest.

# %%
PROBE = 32
probed = value_and_grad(loss, micro_batches=8, weigh=lambda batch: jnp.float32(len(batch["tokens"])), squares=squared_norms)
source = train_batches(corpus, batch_size=PROBE, seed=0)
probe_steps = int(np.ceil(to_target[PROBE].steps))
drawn = [next(source) for _ in range(probe_steps)]


def probe(params, batch):
    (value, aux), gradients = probed(params, batch)
    return jax.tree.map(lambda p, g: p - best[PROBE] * g, params, gradients), {"loss": value, **aux}


_, told = jax.jit(lambda p, b: jax.lax.scan(probe, p, b))(initial, jax.tree.map(lambda *x: np.stack(x), *drawn))
told = {name: np.asarray(x, float) for name, x in told.items()}
noise, recent, moving = NoiseScale(), NoiseScale(decay=0.9), []
for n in range(probe_steps):
    for scale in (noise, recent):
        scale.add({name: x[n] for name, x in told.items()})
    moving.append(recent.b_simple)
late = NoiseScale()
for n in range(probe_steps // 2, probe_steps):
    late.add({name: x[n] for name, x in told.items()})
print(
    f"noise scale over the whole run {noise.b_simple:.3g}, over its later half {late.b_simple:.3g} +- {late.standard_error:.2g} sequences"
)

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
left.semilogy(moving, color="#1f5fa8", label="noise scale, moving averages")
left.axhline(curve.critical_batch, color="#c0182b", linestyle="--", label="critical batch size of the runs above")
left.set(xlabel="step", ylabel="sequences", title="Noise scale of one run")
sizes = np.array(list(best), float)
right.loglog(sizes, list(best.values()), "o", color="#1f5fa8", label="best of the grid", base=2)
for rule, style in (("linear", ":"), ("sqrt", "--"), ("noise", "-")):
    rates = [scaled_rate(rule, best[2], size, 2, late.b_simple) for size in sizes]
    right.loglog(sizes, rates, style, color="#5b6675", label=f"{rule} rule, from batch 2", base=2)
right.set(xlabel="batch", ylabel="learning rate", ylim=(RATES[0] / 2, RATES[-1] * 4), title="Learning rates")
for axes in (left, right):
    axes.grid(alpha=0.3)
    _ = axes.legend(fontsize="small")

# %% [markdown]
# ## On a wafer
#
# A step of each batch size, compiled for a wafer and priced on a CS-3 from shapes. Steps to the target times seconds a step, modelled, at
# 110 dollars an hour, which is an assumption. A model this small leaves the wafer waiting for messages, so that a larger batch costs hardly
# more a step; a model that fills it would move the answer down.

# %%
wafer = wse.Wafer(wse.WSE3, tiles=(8, 8), devices=(1, 1))
found = []
for batch, reached in to_target.items():
    example = {name: jax.ShapeDtypeStruct((batch, CONTEXT), jnp.int32) for name in ("tokens", "targets")}
    lowered = wse.jit(train_step, wafer).lower(initial, example, jnp.float32(1))
    row = wse.compare(lowered, ["cs3"], tokens=batch * CONTEXT).rows[0]
    found.append(converged(row, reached, batch=batch))
    print(f"batch {batch:3}: modelled {row.step_seconds * 1e6:5.1f} us a step, {found[-1].hours * 3600 * 1e3:6.2f} ms and "
          f"{found[-1].dollars * 1e6:6.1f} microdollars to the target")  # fmt: skip
plot_batch_sizes(runs, TARGET, found, pictures / "batch_sizes.png", curve)

# %% [markdown]
# ## Finding

# %%
cheap, small = cheapest(found), found[0]
examples = {batch: n.steps * batch for batch, n in to_target.items()}
assert abs(known.b_simple - true_scale) < 4 * known.standard_error
assert len(found) == len(BATCHES) and cheap.batch > BATCHES[0] and examples[BATCHES[-1]] > 2 * examples[BATCHES[0]]
assert 0.1 < late.b_simple / curve.critical_batch < 10
Markdown(
    f"""Noise within {len(known):,} steps gave {known.b_simple:.1f} +- {known.standard_error:.1f} where the truth is {true_scale:.1f}.

Of the text model, batches of {BATCHES[-1]} take {to_target[BATCHES[-1]].steps:.0f} steps to {TARGET} nats a byte where batches of
{BATCHES[0]} take {to_target[BATCHES[0]].steps:.0f}, and {examples[BATCHES[-1]] / examples[BATCHES[0]]:.1f} times the examples. The runs
together put the critical batch size at {curve.critical_batch:.0f} sequences (standard error {curve.relative_error:.0%}); the noise of the
later half of one run alone says {late.b_simple:.1f} +- {late.standard_error:.1f}. That is no more than the order of size, for the price of
one run instead of {len(BATCHES) * len(RATES)}.

On a CS-3 the cheapest is a batch of {cheap.batch:g}: modelled {cheap.dollars * 1e6:.0f} microdollars, {small.dollars / cheap.dollars:.1f}
times less than with {small.batch:g}. A modelled step of a model this small is latency and hardly grows with its batch, so batches pay there
until steps no longer fall. A model that fills the wafer pays for every example, and its cheapest batch is smaller."""
)
