"""What zeros save, as people see it."""

from __future__ import annotations

import numpy as np
import pytest
import rich.console

from wsejax.compiler import measure_activation_sparsity
from wsejax.cost.sparsity import Part, Sparsity
from wsejax.report import plot_activation_sparsity, sparsity_table


def printed(sparsity: Sparsity) -> str:
    console = rich.console.Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(sparsity_table(sparsity))
    return capture.get()


def test_each_part_stands_beside_its_bound():
    parts = (Part("mlp", 0.75, 4.0, 2.0, 2.0), Part("attention", 0.5, 1.0, 3.0, 1.0), Part("both", 0.5, 4.0, 4.0, 3.0))
    text = printed(Sparsity("streamed", parts, Part("step", 0.75, 10.0, 7.5, 7.5), 100.0, 50.0))
    line = {name: next(one for one in text.splitlines() if one.startswith(name)) for name in ("mlp", "attention", "both", "step")}
    assert "x 2 " in line["mlp"] and "x 4" in line["mlp"] and "dense" not in line["mlp"]
    assert "dense: sparse is slower" in line["attention"] and "partly dense" in line["both"]
    assert "x 1.33" in line["step"] and "50 of 100 bytes" in text


def test_the_picture_has_a_bar_for_each_activation(tmp_path):
    x, w = np.array([[1.0, 0.0, 0.0, 2.0]], np.float32), np.eye(4, dtype=np.float32)
    measured = measure_activation_sparsity(lambda w, x: (x @ w) @ w[:, :2], w, x)
    figure = plot_activation_sparsity(measured, tmp_path / "zeros.png")
    assert [bar.get_height() for bar in figure.axes[0].patches] == pytest.approx([50.0, 50.0])
    assert (tmp_path / "zeros.png").stat().st_size > 5_000
