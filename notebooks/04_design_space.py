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
# # The design space
#
# A wafer has a fixed area and, in practice, a fixed power. A processing element (PE) with more memory or wider arithmetic is a larger PE,
# so fewer of them fit. Whether that pays depends on the program. In `wsejax` a price is a pure function of the machine, so machines that
# nobody has built are as easy to price as the CS-3: a training step is lowered once, from shapes alone, and then priced on as many
# designs as you like.
#
# All times here are **modelled**. They say what the model makes of a design, with its assumptions about area and power
# (`wsejax/cost/design.py`; how the area of a PE divides is partly a guess), and not what it would be when built.
#
# **Question.** If you could turn one knob of the next wafer, which one? And does a small model want the same as a large one?

# %%
# %matplotlib inline
import jax
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown

import wsejax as wse
from experiments.design_space import RANGES, draw, evaluate, front, lowered_step
from wsejax.cost.design import price_step, step_of
from wsejax.report import errors_text, kernel_errors

jax.config.update("jax_platforms", "cpu")
MODELS, BATCH, CONTEXT = ("gpt3-13b", "llama-3.1-70b"), 64, 2048
TOKENS = BATCH * CONTEXT

# %% [markdown]
# ## Two training steps as data
#
# A step of AdamW in bfloat16 over 64 sequences of 2,048 tokens, for a model of 13 and one of 70 billion weights. Neither fits on a wafer,
# so weights stream in, layer by layer, while the wafer computes; if not all activations fit, the batch is cut into micro-batches, and
# each of them streams all weights again.

# %%
steps, runs, own = {}, {}, {}
for name in MODELS:
    lowered = lowered_step(name, BATCH, CONTEXT)
    steps[name] = step_of(lowered, wse.memory(lowered))
    runs[name] = evaluate(steps[name], 1024)
    own[name] = price_step(steps[name], wse.CS3)
    computing, streaming = float(own[name].compute_seconds), float(own[name].io_seconds)
    print(
        f"{name} on a CS-3, modelled: {TOKENS / float(own[name].seconds):,.0f} tokens/s; the wafer computes for {computing:.2f} s, "
        f"weights and activations stream for {streaming:.2f} s, {float(own[name].micro_batches):.0f} micro-batches"
    )
    print(*(f"   {line}" for line in errors_text(kernel_errors(wse.cost(lowered)), trains=True)), sep="\n")

# %% [markdown]
# ## One knob at a time
#
# Each knob of the CS-3 is turned by itself, from a quarter to eight times its value. The area of the wafer stays: what makes a PE larger
# makes PEs fewer.

# %%
factors = 2.0 ** np.linspace(-2, 3, 41)
labels = {
    "clock_hz": "clock", "sram_per_pe_bytes": "SRAM of a PE", "fp16_fma_per_cycle": "multiply-adds of a PE", "link_bits": "width of links",
    "hop_cycles": "cycles of a hop", "io_bytes_per_second": "I/O of the wafer",
}  # fmt: skip
knobs = list(labels)
turned = np.ones((len(knobs), len(factors), len(RANGES)), np.float32)
for n, knob in enumerate(knobs):
    turned[n, :, list(RANGES).index(knob)] = factors
gain = {}
for name in MODELS:
    seconds, _, _ = runs[name](turned.reshape(-1, len(RANGES)))
    gain[name] = float(own[name].seconds) / np.asarray(seconds).reshape(len(knobs), len(factors))

figure, all_axes = plt.subplots(1, 2, figsize=(12, 4.4), layout="constrained", sharey=True)
for axes, name in zip(all_axes, MODELS, strict=True):
    for n, knob in enumerate(knobs):
        axes.loglog(factors, gain[name][n], label=labels[knob])
    axes.set(xlabel="times the CS-3's", title=name, xticks=(0.25, 0.5, 1, 2, 4, 8), xticklabels=("1/4", "1/2", "1", "2", "4", "8"))
    axes.set_xticks([], minor=True)
    axes.set_ylim(0.1, 2)
    axes.grid(alpha=0.3)
all_axes[0].set(ylabel="modelled throughput, times the CS-3's")
_ = all_axes[1].legend(fontsize="small")

# %% [markdown]
# Steps in the curve of SRAM are micro-batches: a little more memory, and one less is needed. On the other side a wafer without room for a
# layer does not train at all.

# %%
at_two = int(np.argmin(np.abs(factors - 2)))
doubled = {name: {labels[knob]: float(gain[name][n, at_two]) for n, knob in enumerate(knobs)} for name in MODELS}
for name in MODELS:
    print(f"{name}, modelled throughput with twice the ...")
    for label, times in sorted(doubled[name].items(), key=lambda item: -item[1]):
        print(f"   {label:22} x {times:.2f}")

# %% [markdown]
# ## All knobs at once
#
# Now 50,000 designs, drawn evenly (in the logarithm) between bounds on every knob, on the CS-3's wafer or a smaller one. A design is on
# the *front* if no other has at least its throughput with no more power and no more area.

# %%
designs = draw(50_000, seed=0)
found = {name: tuple(np.asarray(x) for x in runs[name](designs)) for name in MODELS}
for name, (seconds, watts, area_mm2) in found.items():  # without room for a layer a step never ends
    found[name] = (np.where(np.isfinite(seconds), seconds, np.inf), watts, area_mm2)
    print(f"{name}: {np.isfinite(seconds).mean():.0%} of {len(designs):,} designs can train it")
figure, all_axes = plt.subplots(1, 2, figsize=(12, 4.4), layout="constrained")
best = {}
for axes, name in zip(all_axes, MODELS, strict=True):
    seconds, watts, area_mm2 = found[name]
    at = front(seconds, watts, area_mm2)
    axes.scatter(watts[::10] / 1e3, TOKENS / seconds[::10], s=1, color="#c9d3df", label="designs")
    dots = axes.scatter(watts[at] / 1e3, TOKENS / seconds[at], s=8, c=area_mm2[at], cmap="viridis", label="front")
    axes.scatter(float(own[name].watts) / 1e3, TOKENS / float(own[name].seconds), marker="*", s=120, color="#c0182b", label="CS-3")
    axes.set(xscale="log", yscale="log", xlabel="modelled kW", ylabel="modelled tokens/s", title=name)
    axes.legend(loc="lower right", fontsize="small")
    allowed = np.flatnonzero((watts <= float(own[name].watts)) & (area_mm2 <= wse.CS3.area_mm2))
    best[name] = allowed[np.argmin(seconds[allowed])]
_ = figure.colorbar(dots, ax=all_axes, label="area of the wafer (mm²)")

# %% [markdown]
# ## The best within the CS-3's power and area

# %%
better = {}
for name in MODELS:
    better[name] = float(own[name].seconds) / float(found[name][0][best[name]])
    turns = ", ".join(f"{labels[knob]} x {designs[best[name], list(RANGES).index(knob)]:.1f}" for knob in knobs)
    print(f"{name}: x {better[name]:.1f} of the CS-3's throughput, modelled, with {turns}")

# %% [markdown]
# ## Would one machine do for both?

# %%
small, large = MODELS
swapped = {name: float(found[name][0][best[name]]) / float(found[name][0][best[other]]) for name, other in ((small, large), (large, small))}
no_room = ", for it has no room for a layer" if swapped[large] == 0 else ""
wanted = {name: max(doubled[name], key=doubled[name].__getitem__) for name in MODELS}
bound = {name: "I/O" if float(own[name].io_seconds) > float(own[name].compute_seconds) else "computing" for name in MODELS}

# %% [markdown]
# ## Finding

# %%
assert all(np.isfinite(found[name][0]).any() and better[name] > 1 for name in MODELS) and max(swapped.values()) <= 1
Markdown(
    f"""On a CS-3 the step of {small} is bound by {bound[small]} and that of {large} by {bound[large]} (all of this is modelled).
So they want different machines. Twice the {wanted[small]} makes {small} {doubled[small][wanted[small]]:.2f} times as fast and
{large} {doubled[large][wanted[small]]:.2f} times. Twice the {wanted[large]} makes {small} {doubled[small][wanted[large]]:.2f}
times as fast and {large} {doubled[large][wanted[large]]:.2f} times.

Within the power and area of a CS-3 the best of {len(designs):,} designs has {better[small]:.1f} times its throughput for {small} and
{better[large]:.1f} times for {large}. On the machine that is best for {large}, {small} reaches {swapped[small]:.0%} of what it could have;
the other way round {large} reaches {swapped[large]:.0%}{no_room}."""
)
