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
# # A first wafer
#
# A wafer-scale engine is one chip as large as a silicon wafer: some 900,000 small processing elements (PEs), each with 48 KB of memory of
# its own and a wire to each of its four neighbours. There is no shared memory. A number that is needed elsewhere travels there, PE by PE.
# A few PEs are always broken, and the rest has to work round them.
#
# `wsejax` runs ordinary JAX functions as such a machine would.
#
# **Question.** What happens to a JAX function when all its data is spread over broken ground and may move only from neighbour to
# neighbour: does it still compute the same numbers?

# %%
# %matplotlib inline
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown
from jax.sharding import PartitionSpec as P

import wsejax as wse

jax.config.update("jax_platforms", "cpu")  # bits are the same from one CPU to the next, which no GPU promises
wse.request_cpu_devices(4)  # first of all, before any array
pictures = Path(tempfile.mkdtemp())

# %% [markdown]
# ## The machine
#
# We cut a piece of 32 x 32 PEs from a WSE-3, and break 2% of its PEs and 0.5% of its links. The emulator embeds a perfect *logical* mesh
# into what is healthy: programs see a rectangle, and only the routes know of the holes. PEs are grouped into *tiles*; a tile computes as
# one. And the tiles run on a few JAX devices, here four virtual ones on the CPU.

# %%
spec = wse.WSE3.scaled(32, 32)
defects = wse.DefectMap.uniform(spec, dead_pe_fraction=0.02, dead_link_fraction=0.005, seed=0)
wafer = wse.Wafer(spec, defects, tiles=(8, 8), devices=(2, 2))
print(wafer)

# %% [markdown]
# Red is dead, grey is healthy but left out, dark lines are the rows and columns of the logical mesh. See how they step round the red
# cells.

# %%
wse.plot_wafer(wafer, pictures / "wafer.png")


# %% [markdown]
# ## The program
#
# A loss of two dense layers and its gradient: plain JAX, written with no wafer in mind. `wse.jit` takes the place of `jax.jit`.


# %%
def loss(weights, x):
    hidden = jax.nn.gelu(x @ weights["up"])
    return jnp.mean(jax.nn.log_softmax(hidden @ weights["down"])[:, 0] ** 2)


keys = jax.random.split(jax.random.key(0), 3)
weights = {"up": jax.random.normal(keys[0], (256, 512)) / 16, "down": jax.random.normal(keys[1], (512, 64)) / 22}
x = jax.random.normal(keys[2], (128, 256))


def flat(outputs):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(outputs)])


plain = flat(jax.jit(jax.value_and_grad(loss))(weights, x))
step = wse.jit(jax.value_and_grad(loss), wafer)
on_wafer = flat(step(weights, x))
error = np.linalg.norm(on_wafer - plain) / np.linalg.norm(plain)
print(f"relative difference from plain JAX, loss and {plain.size - 1:,} gradients: {error:.1e}")

# %% [markdown]
# The difference is rounding: the wafer adds up in the order of its tiles, plain JAX in another. What if the defects are others, or there
# are none, or the emulation runs on one device instead of four?

# %%
others = {
    "no defects": wse.Wafer(spec, tiles=(8, 8), devices=(2, 2)),
    "other defects": wse.Wafer(spec, wse.DefectMap.uniform(spec, dead_pe_fraction=0.05, seed=7), tiles=(8, 8), devices=(2, 2)),
    "one device": wse.Wafer(spec, defects, tiles=(8, 8), devices=(1, 1)),
    "16 x 4 tiles": wse.Wafer(spec, tiles=(16, 4), devices=(2, 2)),
}
changed = {name: int((flat(wse.jit(jax.value_and_grad(loss), other)(weights, x)) != on_wafer).sum()) for name, other in others.items()}
for name, count in changed.items():
    print(f"{name:14} {count:>8,} of {plain.size:,} numbers differ in any bit")

# %% [markdown]
# ## What moved
#
# The audit says which operations moved data over the fabric, how much, and from which line of source. `check_hlo` reads the compiled
# program: any other communication than between neighbours would be an error.

# %%
lowered = step.lower(weights, x)
report = wse.check_hlo(lowered.compile())
audit = lowered.audit().to_dict()
print(report)

moved = {}
for row in audit["rows"]:
    name = f"{row['primitive']}\n{row['kernel']}"
    moved[name] = moved.get(name, 0) + row["link_bytes"]
moved = dict(sorted(((name, n) for name, n in moved.items() if n), key=lambda item: item[1]))
figure, axes = plt.subplots(figsize=(7, 0.6 * len(moved) + 1), layout="constrained")
axes.barh(list(moved), [n / 1024 for n in moved.values()], color="#1f5fa8")
axes.set(xscale="log", xlabel="KiB times links crossed, of one step (a tile a device)", title="What moved, by operation and kernel")
axes.grid(axis="x", alpha=0.3)


# %% [markdown]
# ## Down to the single wire
#
# Programs can also be written for the PEs themselves. Here heat spreads: each PE holds one temperature, hears those of its four
# neighbours and moves towards their mean. With `execution="physical"` every value really lies on its physical PE, dead PEs hold NaN, and
# each message goes hop by hop along its route. One NaN in the result would tell of a route through a dead PE.


# %%
def diffuse(heat):
    for _ in range(20):
        around = sum(wse.fabric.shift(heat, way) for way in ("north", "south", "west", "east"))
        heat = heat + 0.2 * (around - 4 * heat)
    return heat


rows, cols = 28, 28
start = np.zeros((rows, cols), np.float32)
start[rows // 2, cols // 2] = 1
results = {}
for execution in ("logical", "physical"):
    machine = wse.Wafer(spec, defects, tiles=(rows, cols), devices=(1, 1), execution=execution)
    program = wse.wafer_map(diffuse, machine, in_specs=(P("y", "x"),), out_specs=P("y", "x"))
    results[execution] = np.asarray(jax.jit(program)(start))
traffic = wse.traffic(program, start)
over_links = int(traffic.on_links().sum())
print(f"same bits: {np.array_equal(results['logical'], results['physical'])}, NaN: {int(np.isnan(results['physical']).sum())}")
print(f"{traffic.wavelet_hops:,} words between logical neighbours cross {over_links:,} physical links")

# %%
wse.plot_traffic(traffic, machine, pictures / "traffic.png")

# %% [markdown]
# ## Finding

# %%
assert error < 1e-5 and changed["no defects"] == changed["other defects"] == changed["one device"] == 0
Markdown(
    f"""A JAX function runs unmodified on {wafer.logical_pes} PEs with {defects.dead_pe_count} broken ones beside them.
Its numbers equal plain JAX to {error:.0e}, the rounding of float32, and defects change not one bit of them:
the only thing that does is the grid of tiles, which sets the order of sums
({changed["16 x 4 tiles"]:,} of {plain.size:,} numbers then differ).
What defects cost is way: {over_links / traffic.wavelet_hops - 1:.1%} more links are crossed than on a perfect wafer."""
)
