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
# # Train on a wafer
#
# A run of weeks on a machine of a million parts will see parts die. On a cluster a dead part ends the step, and the run goes back to a
# checkpoint. A wafer is a mesh that can be laid anew round what is dead.
#
# **Question.** Does a language model learn the same on a wafer that is broken from the start, and breaks further while it learns, as on
# an ordinary machine?

# %%
# %matplotlib inline
import tempfile
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from IPython.display import Markdown

import wsejax as wse
from models.gpt2 import FAMILY, GPT2Config
from wsejax.training import (
    Death,
    init_train_state,
    load_corpus,
    make_train_step,
    next_token_loss,
    survive,
    train_batches,
    validation_batches,
)

jax.config.update("jax_platforms", "cpu")  # bits are the same from one CPU to the next, which no GPU promises
wse.request_cpu_devices(4)  # first of all, before any array
pictures = Path(tempfile.mkdtemp())
STEPS, KILL_AT = 60, 30

# %% [markdown]
# ## A model and text
#
# A small GPT in plain flax that reads bytes, and text that every Python carries: its own documentation and sources. AdamW from optax, a
# train step that is a pure function. None of this knows of a wafer. (The learning rate is one at which training is stable. Where it is
# not, rounding grows from step to step on any machine, and no two of them agree.)

# %%
config = GPT2Config(vocab_size=256, context=64, layers=2, heads=4, width=64)
corpus = load_corpus(context=config.context)
schedule = optax.warmup_cosine_decay_schedule(0.0, 4e-3, 10, STEPS, 4e-4)
optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))


def loss(params, batch, key=None):
    return next_token_loss(FAMILY.apply(config, params, batch["tokens"], key), batch["targets"])


def new_state():
    return init_train_state(FAMILY.init(config, jax.random.key(0)), optimiser, seed=0)


initial = jax.tree.map(np.asarray, jax.jit(new_state)())
train_step = make_train_step(loss, optimiser, stochastic=False)
batches = train_batches(corpus, batch_size=16, seed=0)
batches = [next(batches) for _ in range(STEPS)]
held_out = validation_batches(corpus, batch_size=16, batches=1)[0]
print(f"{FAMILY.parameters(config):,} parameters, {len(corpus.tokens):,} bytes of text")

# %% [markdown]
# ## Three machines
#
# 1. plain `jax.jit` on one device;
# 2. a perfect wafer of 32 x 32 PEs;
# 3. a wafer with 2% of its PEs dead, which loses a block of 3 x 3 more after step 30. `survive` lays a new mesh, compiles the step
#    for it and moves the state to where it now belongs, in memory; nothing is read from a checkpoint.

# %%
spec = wse.WSE3.scaled(32, 32)
broken = wse.Wafer(spec, wse.DefectMap.uniform(spec, dead_pe_fraction=0.02, seed=0), tiles=(4, 4), devices=(2, 2))
perfect = wse.Wafer(spec, tiles=(4, 4), devices=(2, 2))
death = Death(pes=tuple((row, col) for row in (14, 15, 16) for col in (20, 21, 22)))


def build(wafer):
    """The compiled step, and where it wants its state."""
    lowered = wse.jit(train_step, wafer).lower(initial, batches[0])
    return lowered.compile(), lowered.in_shardings[0]


def run(step, wafer=None, death=None):
    state, losses, event = initial, [], None
    for number, batch in enumerate(batches):
        if death is not None and number == KILL_AT:
            wafer, step, state, event = survive(wafer, state, death, step=number, build=build)
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return np.array(losses), jax.tree.map(np.asarray, state), wafer, event


plain, _, _, _ = run(jax.jit(train_step))
on_perfect, state_perfect, _, _ = run(build(perfect)[0])
on_broken, state_broken, survivor, event = run(build(broken)[0], broken, death)
print(event)

# %% [markdown]
# The wafer after the last death. The mesh steps round the new hole.

# %%
wse.plot_wafer(survivor, pictures / "survivor.png")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
left.plot(plain, color="#888", linewidth=5, alpha=0.4, label="plain jax.jit")
left.plot(on_perfect, color="#1f5fa8", label="perfect wafer")
left.plot(on_broken, "--", color="#c0182b", label="broken wafer, breaking further")
left.axvline(KILL_AT, color="#888", linewidth=0.8)
left.annotate("nine PEs die", (KILL_AT, plain[0]), xytext=(4, -4), textcoords="offset points")
left.set(xlabel="step", ylabel="loss (nats a byte)", title="Three runs")
right.plot((on_perfect - plain) / plain, color="#1f5fa8", label="perfect wafer against plain JAX")
right.set(xlabel="step", ylabel="relative difference of the loss", title="The order of sums, nothing else")
for axes in (left, right):
    axes.grid(alpha=0.3)
    _ = axes.legend()

# %% [markdown]
# ## What the step did on the wafer
#
# Where the bytes went. `wse.audit` works on shapes alone and needs no run; nothing in the step was left off the fabric.

# %%
audit = wse.audit(wse.jit(train_step, perfect), initial, batches[0]).to_dict()
by_kind = {}
for row in audit["rows"]:
    by_kind[row["kernel"]] = by_kind.get(row["kernel"], 0) + row["link_bytes"]
for kernel, moved in sorted(by_kind.items(), key=lambda item: -item[1])[:6]:
    print(f"{kernel:28} {moved / audit['link_bytes']:6.1%} of the bytes that crossed links")
print(f"everything on the fabric: {audit['clean']}")

# %% [markdown]
# ## Finding

# %%
same_losses = np.array_equal(on_perfect, on_broken)
same_bits = all(a.tobytes() == b.tobytes() for a, b in zip(jax.tree.leaves(state_perfect), jax.tree.leaves(state_broken), strict=True))
unseen = float(jax.jit(loss)(state_broken.params, held_out))
worst = float(np.max(np.abs(on_perfect - plain) / plain))
assert same_losses and same_bits and worst < 1e-4 and plain[-1] < plain[0] - 1 and audit["clean"]
Markdown(
    f"""The model learns: {plain[0]:.2f} nats a byte before the first step, {unseen:.2f} on text it has not seen after {STEPS}.
A wafer with {broken.defects.dead_pe_count} dead PEs that loses {len(death.pes)} more on the way gives the same bits
as a perfect one: all {STEPS} losses and all {FAMILY.parameters(config):,} parameters. Against plain JAX no loss differs by more
than {worst:.0e}, which is the order of sums.
A death costs one recompilation and a move of the state, and no step is done twice."""
)
