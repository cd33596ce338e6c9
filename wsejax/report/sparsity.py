"""Zeros as tables and pictures: what zero weights would save (modelled), and what activations are zero (counted)."""

from __future__ import annotations

import os

import numpy as np
from matplotlib.figure import Figure
from rich.console import Group
from rich.text import Text

from ..compiler import ActivationSparsity
from ..cost.sparsity import Sparsity
from .plots import _figure, _save
from .pricing import seconds_text
from .tables import Sheet, source_text


def sparsity_table(sparsity: Sparsity) -> Group:
    """The modelled speed-up of each part and of the step, beside what no overhead would give."""
    note = lambda part: "" if not part.slower else "dense: sparse is slower" if part.speedup == 1 else "partly dense"
    rows = [
        (
            part.name, f"{part.sparsity:.1%}" if part.sparsity else "-", seconds_text(part.dense_seconds), seconds_text(part.seconds),
            f"x {part.speedup:.3g}", f"x {part.bound:.3g}", note(part),
        )
        for part in (*sparsity.parts, sparsity.step)
    ]  # fmt: skip
    columns = ("part", "zeros", "dense, modelled", "modelled", "speed-up", "at most", "done")
    return Group(Text(str(sparsity)), Sheet(columns, rows, left=(0, 6), drop=("dense, modelled",), fold={"part": 16, "done": 12}))


def plot_activation_sparsity(measured: ActivationSparsity, path: str | os.PathLike[str]) -> Figure:
    """Share of zeros of every activation that a product reads, in the order of the run; the same lines in a loop as one colour."""
    rows = [(product, operand) for product in measured.products for operand in product.activations]
    figure = _figure(9, 4.6)
    axes = figure.add_subplot()
    at = np.arange(len(rows))
    share = np.array([100.0 * operand.zeros / max(1, operand.size) for _, operand in rows])
    names = [f"{operand.made_by}, read at {source_text(product.source)}" for product, operand in rows]
    for n, name in enumerate(dict.fromkeys(names)):
        mine = np.array([one == name for one in names])
        axes.bar(at[mine], share[mine], color=f"C{n % 10}", label=name if n < 8 else None)
    axes.set(xlabel="activations, as products read them", ylabel="zeros (%)", ylim=(0, 100), title="Zeros of activations (counted)")
    axes.grid(axis="y", alpha=0.3)
    figure.legend(fontsize="x-small", loc="outside lower center", frameon=False)
    return _save(figure, path)
