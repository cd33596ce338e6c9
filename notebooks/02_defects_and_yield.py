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
# # Defects and yield
#
# Chips are cut from wafers because dust and flaws fall on every wafer: cut it small, throw away the pieces that were hit, sell the
# others. A wafer-scale engine is not cut, and the chance that no flaw hits it at all is nil.
#
# **Question.** How much of a wafer is left when it may not be thrown away, and what decides it?
#
# Figures of the machine are those of `wse.WSE3`, which names a source for each. The density of defects, 0.001 for each mm², is what
# Cerebras gives for TSMC's 5 nm ("100x Defect Tolerance").

# %%
# %matplotlib inline
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown

import wsejax as wse

PER_MM2 = 0.001
spec = wse.WSE3
pictures = Path(tempfile.mkdtemp())

# %% [markdown]
# ## Without redundancy
#
# Defects fall independently (Poisson), so a piece of silicon of area $A$ is flawless with probability $e^{-DA}$.

# %%
gpu_mm2 = 814.0  # the die of an H100
flawless = {"one PE": spec.area_mm2 / spec.pes, "a GPU of 814 mm²": gpu_mm2, "the whole wafer": spec.area_mm2}
flawless = {name: np.exp(-PER_MM2 * area) for name, area in flawless.items()}
for name, p in flawless.items():
    print(f"{name:18} is flawless with probability {p:.3g}")
print(f"a wafer has {PER_MM2 * spec.area_mm2:.0f} defects on average")

# %% [markdown]
# ## With a mesh that goes round
#
# The compiler of a wafer wants a perfect rectangle of PEs. `wse.remap` finds the largest one that it can embed into what is healthy,
# where neighbours of the rectangle are at most so many hops apart. First a piece small enough to see single PEs, with a hundred times as
# many defects as there should be:

# %%
piece = spec.scaled(64, 64)
crowded = wse.DefectMap.sample(piece, per_mm2=100 * PER_MM2, seed=3)
wse.plot_wafer(wse.Wafer(piece, crowded, policy="largest", max_dilation=5, devices=(1, 1)), pictures / "piece.png")

# %% [markdown]
# And whole wafers, some with independent defects and some with defects that crowd on some dies, as they do in fabs. "Spares" asks for
# what the real product promises: that each wafer gives the very same grid, whatever is broken; the rest of the PEs are spares.

# %%
found = []
for clustering in (None, 0.5):
    for seed in range(3):
        defects = wse.DefectMap.sample(spec, per_mm2=PER_MM2, clustering=clustering, seed=seed)
        mesh = wse.remap(spec, defects, policy="largest")
        spares = wse.remap(spec, defects, policy="spares")  # raises an error where there is no such grid
        assert (spares.rows, spares.cols) == (spec.usable_rows, spec.usable_cols)
        found.append((defects.dead_pe_count, mesh.rows * mesh.cols / spec.pes, mesh.mean_dilation))
        kind = "Poisson" if clustering is None else "clustered"
        left = f"{mesh.rows} x {mesh.cols} left, {found[-1][1]:.2%} of the PEs, {mesh.mean_dilation:.3f} hops a link"
        print(f"{kind:9} {defects.dead_pe_count:3} dead PEs: {left}; the product's grid of {spares.rows} x {spares.cols}: found")
whole = np.array(found)

# %% [markdown]
# ## What decides it: the size of a core
#
# A defect takes a core with it. Here is the same wafer with the same density of defects, cut into fewer and larger cores, up to the 6 mm²
# of a block of a GPU and beyond. Two curves: the silicon in cores that were not hit, and what a mesh can use of it.

# %%
sizes, healthy, usable = [], [], []
for cols in (24, 48, 96, 192, 384, 792):
    rows = round(cols * spec.rows / spec.cols)
    cut = spec.replace(name=f"{rows} x {cols} cores", rows=rows, cols=cols, usable_rows=rows, usable_cols=cols)
    maps = [wse.DefectMap.sample(cut, per_mm2=PER_MM2, link_share=0.0, seed=seed) for seed in range(3)]
    meshes = [wse.remap(cut, defects, policy="largest", max_dilation=5) for defects in maps]
    sizes.append(cut.area_mm2 / cut.pes)
    healthy.append(1 - np.mean([defects.dead_pe_count for defects in maps]) / cut.pes)
    usable.append(np.mean([mesh.rows * mesh.cols for mesh in meshes]) / cut.pes)

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.semilogx(sizes, [100 * share for share in healthy], "o--", color="#d9822b", label="cores that were not hit")
axes.semilogx(sizes, [100 * share for share in usable], "o-", color="#1f5fa8", label="cores in the logical mesh")
axes.semilogx(sizes, [100 * np.exp(-PER_MM2 * size) for size in sizes], ":", color="#7a4b8f", label="$e^{-DA}$")
axes.axvline(sizes[-1], color="#888", linewidth=0.8)
axes.annotate("a PE of the WSE-3", (sizes[-1], 60), xytext=(4, 0), textcoords="offset points", color="#555")
axes.set(xlabel="area of a core (mm²)", ylabel="% of the wafer", title=f"A wafer with {PER_MM2 * spec.area_mm2:.0f} defects")
axes.grid(alpha=0.3)
_ = axes.legend()

# %% [markdown]
# ## How far it can be pushed
#
# More defects than any fab would ship, on 128 x 128 PEs. How many hops may lie between logical neighbours?

# %%
piece = spec.scaled(128, 128)
dead = (0.001, 0.002, 0.005, 0.01, 0.02)
kept = {}
for hops in (3, 5, 9, None):
    for fraction in dead:
        defects = wse.DefectMap.uniform(piece, dead_pe_fraction=fraction, seed=0)
        mesh = wse.remap(piece, defects, policy="largest", max_dilation=hops)
        kept[hops, fraction] = mesh.rows * mesh.cols / piece.pes

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for hops in (3, 5, 9, None):
    label = "any number of hops" if hops is None else f"at most {hops} hops"
    axes.loglog([100 * f for f in dead], [100 - 100 * kept[hops, f] for f in dead], "o-", label=label, alpha=0.8)
axes.loglog([100 * f for f in dead], [100 * f for f in dead], "k--", linewidth=0.8, label="dead")
axes.set(xlabel="dead PEs (%)", ylabel="PEs not in the mesh (%)", title="What a bound on hops costs, 128 x 128 PEs")
axes.grid(alpha=0.3)
_ = axes.legend()

# %% [markdown]
# ## Finding

# %%
large = int(np.argmin(np.abs(np.array(sizes) - 6)))
assert whole[:, 1].min() > 0.98 and usable[-1] > usable[large]
Markdown(
    f"""A wafer without redundancy would work once in {1 / flawless["the whole wafer"]:.0e} tries, a GPU's die
{flawless["a GPU of 814 mm²"]:.0%} of the time.
With a mesh that goes round defects {len(whole)} of {len(whole)} wafers give the product's grid, and at
least {whole[:, 1].min():.2%} of all PEs
can be used, for links that are {whole[:, 2].mean() - 1:.1%} longer on average.

The size of a core decides: cut into cores of {sizes[large]:.1f} mm² the same wafer keeps {usable[large]:.1%}, into PEs of
{sizes[-1]:.3f} mm² {usable[-1]:.1%}.
Three hops a link are enough up to {max(f for f in dead if kept[3, f] > 0.95):.1%} dead PEs; at 2% they leave
{kept[3, 0.02]:.0%}, and five hops {kept[5, 0.02]:.0%}."""
)
