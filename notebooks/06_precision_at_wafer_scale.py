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
# # Precision at wafer scale
#
# A wafer computes in 16 bits: float16 (5 bits of exponent, 10 of mantissa), bfloat16 (8 and 7), or Cerebras' own CB16 (6 and 9). It adds
# up over hundreds of processing elements (PEs), in an order that the reduction's topology decides, in a precision that is a choice
# in a tile of PEs and another from tile to tile. No JAX dtype is CB16: it is emulated here, every result rounded exactly.
#
# **Question.** What do format, topology and the precision of the sums do to a sum, and how much of it does training see?

# %%
# %matplotlib inline
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from IPython.display import Markdown

import wsejax as wse
from models.gpt2 import FAMILY, GPT2Config
from wsejax.kernels.formats import BFLOAT16, CB16, FLOAT16, round_to
from wsejax.training import init_train_state, load_corpus, make_train_step, next_token_loss, train_batches
from wsejax.training.lossscale import skipped_steps_of
from wsejax.training.precision import policy

jax.config.update("jax_platforms", "cpu")
wse.request_cpu_devices(1)  # first of all, before any array
formats = {"float16": FLOAT16, "bfloat16": BFLOAT16, "cb16": CB16}
colours = {"float32": "#27313f", "float16": "#1f5fa8", "bfloat16": "#d9822b", "cb16": "#c0182b"}

# %% [markdown]
# ## What a format can say
#
# Relative error of rounding a number to each format, over its magnitude. Left of the flat part numbers are subnormal, then zero; right of
# it they overflow.

# %%
sizes = jnp.asarray(2.0 ** np.linspace(-60, 40, 4001), jnp.float32)
figure, axes = plt.subplots(figsize=(9, 3.6), layout="constrained")
for name, form in formats.items():
    error = np.abs(np.asarray(round_to(sizes, form), np.float64) / np.asarray(sizes, np.float64) - 1)
    windows = np.where(np.isfinite(error), error, np.nan).reshape(-1, 1)[:4000].reshape(100, 40)
    axes.semilogy(np.log2(np.asarray(sizes[:4000:40])), np.max(windows, axis=1), color=colours[name], label=name)
    print(f"{name:8} from {form.smallest:.2e} to {form.largest:.2e}, error of rounding at most {2.0 ** -(form.mantissa_bits + 1):.1e}")
axes.set(xlabel="power of two", ylabel="largest relative error", ylim=(1e-4, 2))
axes.grid(alpha=0.3)
_ = axes.legend()

# %% [markdown]
# ## What a sum loses
#
# 64 sums of 4,096 positive bfloat16 numbers, as in a norm, over 64 tiles of a line. Sums are made in each tile, then along the line of
# tiles: in float32 or in the operand's dtype, each. Cerebras' precision levels (POL) 0, 1 and 2 go from float32 to 16 bits; here they are
# the three columns.

# %%
random = np.random.default_rng(0)
x = jnp.asarray(random.uniform(size=(64, 4096)), jnp.bfloat16)
exact = np.asarray(x, np.float64).sum(1)
levels = {"float32, float32": "float32", "float32, operand": ("float32", "operand"), "operand, operand": "operand"}
topologies = ("chain", "two_phase", "tree")
lost = {}
for (label, accumulate), reduction in itertools.product(levels.items(), topologies):
    wafer = wse.Wafer(wse.WSE3.scaled(64, 64), tiles=(1, 64), devices=(1, 1), reduction=reduction, accumulate=accumulate)
    got = np.asarray(wse.jit(lambda x: jax.lax.reduce_sum(x, (1,)), wafer)(x), np.float64)
    lost[label, reduction] = float(np.sqrt(np.mean((got / exact - 1) ** 2)))

figure, axes = plt.subplots(figsize=(9, 3.6), layout="constrained")
for n, reduction in enumerate(topologies):
    axes.bar(np.arange(3) + 0.27 * (n - 1), [lost[label, reduction] for label in levels], 0.25, label=reduction.replace("_", " "))
axes.set_xticks(range(3), [f"in a tile, from tile to tile:\n{label}" for label in levels])
axes.set(yscale="log", ylabel="relative error of the sum (rms)")
_ = axes.legend()

# %% [markdown]
# ## What training sees
#
# A small GPT learns Python's documentation, the same batches every time. Master weights and the optimiser's state are float32; the loss is
# scaled for float16 and CB16, which have not the range of float32. One run is in bfloat16 on a wafer of 4 x 4 tiles whose sums are all
# rounded to bfloat16.

# %%
STEPS = 100
config = GPT2Config(vocab_size=256, context=32, layers=1, heads=4, width=32)
batches = list(itertools.islice(train_batches(load_corpus(context=config.context), batch_size=8, seed=0), STEPS))


def trained(how, compile=lambda step: jax.jit(step, donate_argnums=0)):
    """(loss of every step, steps that were skipped) of a policy."""
    narrow = dataclasses.replace(config, dtype=how.compute_dtype)
    tx = how.scaled(optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2)))
    loss = how.apply(lambda params, batch, key: next_token_loss(FAMILY.apply(narrow, params, batch["tokens"]), batch["targets"]))
    step, losses = compile(make_train_step(loss, tx, stochastic=False)), []
    state = init_train_state(FAMILY.init(narrow, jax.random.key(0)), tx, seed=0)
    for batch in batches:
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return np.array(losses), int(skipped_steps_of(state.opt_state))


losses, skipped = {}, {}
for name in ("float32", "bfloat16", "float16", "cb16"):
    losses[name], skipped[name] = trained(policy(name))
rough = wse.Wafer(wse.WSE3.scaled(16, 16), tiles=(4, 4), devices=(1, 1), accumulate="operand")
losses["bfloat16, rough sums"], _ = trained(policy("bfloat16"), lambda step: wse.jit(step, rough, donate_argnums=0))

figure, all_axes = plt.subplots(1, 2, figsize=(12, 3.8), layout="constrained")
for name, line in losses.items():
    style = {"color": colours[name.split(",")[0]], "linestyle": "--" if "rough" in name else "-", "label": name, "linewidth": 1.2}
    all_axes[0].plot(line, **style)
    if name != "float32":
        all_axes[1].plot(line - losses["float32"], **style)
all_axes[0].set(xlabel="step", ylabel="loss, nats a byte")
all_axes[1].set(xlabel="step", ylabel="loss less that of float32")
for axes in all_axes:
    axes.grid(alpha=0.3)
    axes.legend()

# %% [markdown]
# ## Finding

# %%
ends = {name: float(line[-30:].mean()) for name, line in losses.items()}
apart = {name: abs(end - ends["float32"]) for name, end in ends.items()}
fine, worst = lost["float32, float32", "chain"], lost["operand, operand", "chain"]
assert worst > 3 * fine and lost["operand, operand", "tree"] < worst
assert max(apart.values()) < 0.1 < losses["float32"][0] - ends["float32"]
Markdown(
    f"""Sums of 4,096 bfloat16 numbers that are added up in float32 are off by {fine:.1e}, one rounding. Rounded in the tile and from
tile to tile a chain is off by {worst:.1e}, {worst / fine:.0f} times as much, and a tree by {lost["operand, operand", "tree"]:.1e}; rounded
between tiles only, the chain by {lost["float32, operand", "chain"]:.1e}. Where sums are float32 the topology changes next to nothing.

Training sees little of it. After {STEPS} steps float32 is at {ends["float32"]:.3f} nats a byte (mean of the last 30); bfloat16 ends
{apart["bfloat16"]:.3f} from it, float16 {apart["float16"]:.3f}, CB16 {apart["cb16"]:.3f}, and bfloat16 with sums rounded after every tile
{apart["bfloat16, rough sums"]:.3f}. Loss scaling skipped {skipped["float16"]} steps in float16 and {skipped["cb16"]} in CB16."""
)
