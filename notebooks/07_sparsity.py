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
# # Sparse weights: which to keep, and what it buys
#
# A machine that takes weights one by one, and skips those that are zero, makes unstructured sparsity worth having. Four ways to get it
# while training:
#
# * *static*: masks are drawn once, and stay;
# * *SET* (Mocanu et al. 2018): now and then the least weights are exchanged for others, drawn at random;
# * *RigL* (Evci et al. 2020): as SET, but those grow whose gradient is greatest;
# * *GMP*, gradual magnitude pruning (Zhu & Gupta 2017): begins dense, and prunes the least along a cubic.
#
# **Question.** How much loss does sparsity cost, how much of that do masks that move win back, and how much faster could a step get?

# %%
# %matplotlib inline
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from IPython.display import Markdown

from wsejax import sparse
from wsejax.training.data import load_corpus

jax.config.update("jax_platforms", "cpu")  # bits are the same from one CPU to the next, which no GPU promises
STEPS, CONTEXT, WIDTH, HIDDEN = 300, 8, 16, 192
colours = {"static": "#d9822b", "SET": "#7a4b8f", "RigL": "#1f5fa8", "GMP": "#3a8f5c"}

# %% [markdown]
# ## A small model
#
# It guesses the next byte of Python's documentation and sources from the eight before it: embeddings, a hidden layer, logits. The two
# matrices behind the embeddings are pruned. `sparsify` wraps the optimiser; the parameters of a run are zero where masks are False, always.

# %%
corpus = load_corpus((), context=CONTEXT)
random = np.random.default_rng(0)
windows = lambda starts, shape: corpus.tokens[random.choice(starts, shape)[..., None] + np.arange(CONTEXT + 1)].astype(np.int32)
batches, unseen = jnp.asarray(windows(corpus.train_starts, (STEPS, 64))), jnp.asarray(windows(corpus.validation_starts, (2048,)))

draw = lambda n, *shape: jnp.asarray(np.random.default_rng(n).normal(size=shape) / np.sqrt(shape[0]), jnp.float32)
dense = {
    "embedding": draw(1, 256, WIDTH) * 16,
    "hidden": {"kernel": draw(2, CONTEXT * WIDTH, HIDDEN), "bias": jnp.zeros(HIDDEN)},
    "out": {"kernel": draw(3, HIDDEN, 256), "bias": jnp.zeros(256)},
}


def loss(params, text):
    x = params["embedding"][text[:, :-1]].reshape(len(text), -1)
    x = jax.nn.gelu(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    logits = x @ params["out"]["kernel"] + params["out"]["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, text[:, -1]).mean()


def trained(*groups):
    """(loss on text that it has not seen, masks of the hidden kernel before each step and after the last)."""
    adam = optax.adam(optax.cosine_decay_schedule(5e-3, STEPS))
    tx = sparse.sparsify(adam, *groups) if groups else adam
    seen = lambda state: sparse.masks_of(state)["hidden/kernel"] if groups else ()

    def step(carry, batch):
        params, state = carry
        updates, after = tx.update(jax.grad(loss)(params, batch), state, params)
        return (optax.apply_updates(params, updates), after), seen(state)

    def run(state):
        params = sparse.masked(dense, state) if groups else dense
        (params, state), masks = jax.lax.scan(step, (params, state), batches)
        return loss(params, unseen), masks, seen(state)

    reached, masks, last = jax.jit(run)(jax.jit(tx.init)(dense))
    return float(reached), np.concatenate([masks, last[None]]) if groups else None


def group(name, sparsity):
    moving = {"every": 15, "end": 3 * STEPS // 4}
    return {
        "static": lambda: sparse.static(".*/kernel", sparsity),
        "SET": lambda: sparse.set_(".*/kernel", sparsity, **moving),
        "RigL": lambda: sparse.rigl(".*/kernel", sparsity, **moving),
        "GMP": lambda: sparse.gmp(".*/kernel", sparsity, begin=15, **(moving | {"end": STEPS // 2})),
    }[name]()


sparsities = (0.8, 0.95, 0.98)
runs = {(name, s): trained(group(name, s)) for name in colours for s in sparsities if name != "SET" or s == 0.95}
all_of_them = trained()[0]

# %% [markdown]
# ## Masks while they train
#
# A corner of the hidden kernel at 95%: black is kept. Above, which share is kept, and how much of that is kept at the end, too.

# %%
figure, all_axes = plt.subplots(2, 4, figsize=(13, 6), layout="constrained", height_ratios=(2, 3))
for (above, below), name in zip(all_axes.T, colours, strict=True):
    masks = runs[name, 0.95][1]
    counts = masks.sum((1, 2))
    above.plot(counts / masks[0].size, color=colours[name], label="kept")
    above.plot((masks & masks[-1]).sum((1, 2)) / masks[0].size, ":", color="#27313f", label="and at the end")
    above.set(title=name, ylim=(0, 1 if name == "GMP" else 0.1), xlabel="step")
    below.imshow(masks[-1][:48, :48], cmap="Greys", interpolation="nearest")
    below.set(xticks=[], yticks=[])
_ = all_axes[0, 0].legend()

moved = {name: 1 - (runs[name, 0.95][1][0] & runs[name, 0.95][1][-1]).sum() / runs[name, 0.95][1][-1].sum() for name in colours}
size = dense["hidden"]["kernel"].size
for (name, s), (_, masks) in runs.items():
    assert masks[-1].sum() == round((1 - s) * size), "exact counts"
    print(f"{name:6} at {s:.0%}: {masks[-1].sum():6,} of {size:,} weights kept")

# %% [markdown]
# ## Loss against sparsity

# %%
figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
for name, colour in colours.items():
    points = [(1 - s, reached) for (who, s), (reached, _) in runs.items() if who == name]
    axes.semilogx(*zip(*points, strict=True), "o-", color=colour, label=name)
axes.axhline(all_of_them, color="#888", linewidth=0.8)
axes.annotate("dense", (0.02, all_of_them), xytext=(0, 3), textcoords="offset points", color="#555")
axes.set(xlabel="share of weights that is kept", ylabel="loss on unseen text, nats a byte", xticks=[1 - s for s in sparsities])
axes.set_xticklabels([f"{1 - s:.0%}" for s in sparsities])
axes.minorticks_off()
_ = axes.legend()

# %% [markdown]
# ## What it buys
#
# At most. Where a share $f$ of a step's time goes into products of sparse weights, and every zero is skipped at no cost, the step is
#
# $$ \frac{1}{(1 - f) + f\,(1 - s)} $$
#
# times as fast (Amdahl). Attention between tokens, norms, logits and moving data are the rest. This is arithmetic, no model of a machine,
# which would have to pay for indices and for uneven work as well.

# %%
faster = lambda f, s: 1 / ((1 - f) + f * (1 - s))
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
share = np.linspace(0, 0.98, 99)
for f, colour in ((1.0, "#27313f"), (0.9, "#1f5fa8"), (0.7, "#d9822b")):
    axes.semilogy(share, faster(f, share), color=colour, label=f"{f:.0%} of the step in sparse products")
axes.set(xlabel="sparsity", ylabel="times as fast, at most", yticks=[1, 2, 5, 10, 20, 50], yticklabels=[1, 2, 5, 10, 20, 50])
axes.grid(alpha=0.3)
_ = axes.legend()

# %% [markdown]
# ## Finding

# %%
lost = {key: reached - all_of_them for key, (reached, _) in runs.items()}
print({f"{name} {s:.0%}": round(value, 3) for (name, s), value in lost.items()})
assert all(lost["RigL", s] < lost["static", s] for s in (0.95, 0.98)) and lost["static", 0.98] > lost["static", 0.8]
assert moved["static"] == 0 and moved["RigL"] > 0.2
Markdown(
    f"""Dense, this model reaches {all_of_them:.3f} nats a byte. With 95% of two matrices pruned, masks that stay cost
{lost["static", 0.95]:.3f} more, SET {lost["SET", 0.95]:.3f}, RigL {lost["RigL", 0.95]:.3f}, and GMP, which begins dense and has
little time to mend what it prunes, {lost["GMP", 0.95]:.3f}. At 98% it is {lost["static", 0.98]:.3f}
against {lost["RigL", 0.98]:.3f} of RigL. At 95% RigL ends with {moved["RigL"]:.0%} of its weights in other places than it began.

Skipping zeros at 95% makes sparse products at most {faster(1.0, 0.95):.0f} times as fast, but a step that spends 90% of its time on them
only {faster(0.9, 0.95):.1f} times, and one that spends 70% {faster(0.7, 0.95):.1f} times: what is not sparse decides."""
)
