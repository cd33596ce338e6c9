"""A machine as data: a pytree of floats that refuses what no machine has."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wsejax.hardware import CS1, CS2, CS3, SYSTEMS, System, as_system, system


def test_it_is_a_pytree_of_floats() -> None:
    leaves, tree = jax.tree.flatten(CS3)
    assert len(leaves) == len(dataclasses.fields(System)) - 1 and all(isinstance(x, float) for x in leaves)
    assert jax.tree.unflatten(tree, leaves) == CS3
    many = jax.vmap(lambda s: s.pes)(jax.tree.map(lambda x: jnp.stack([jnp.float32(x)] * 3), CS3))
    assert many.shape == (3,)
    assert jax.grad(lambda s: s.dense_peak_fp16_flops_per_second)(CS3).clock_hz == pytest.approx(16 * CS3.pes)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(System) if f.name != "name"])
def test_every_field_refuses_nonsense(field: str) -> None:
    for wrong in (True, "1e9", -1.0, float("nan"), float("inf"), [1.0], 1 + 2j, np.float64(-3), np.array([1e30])):
        with pytest.raises(ValueError, match=field):
            CS3.replace(**{field: wrong})
    with pytest.raises(ValueError, match=field):
        as_system(CS3.replace(**{field: jnp.float32(-1)}))


def test_units_and_names() -> None:
    with pytest.raises(ValueError, match=r"clock_hz=0.85: .*unit"):
        CS3.replace(clock_hz=0.85)
    with pytest.raises(ValueError, match="hop_cycles=0"):
        CS3.replace(hop_cycles=0)
    with pytest.raises(ValueError, match="leaves nothing"):
        CS3.replace(code_per_pe_bytes=50_000.0)
    with pytest.raises(ValueError, match=r"speed=.*no such field.*clock_hz"):
        CS3.replace(speed=3.0)
    assert [system(name) for name in ("cs1", "CS-2", "WSE-3")] == [CS1, CS2, CS3]
    assert as_system("cs3") is as_system(CS3) is CS3
    for wrong in ("cs9", 3, None):
        with pytest.raises(ValueError, match="cs1, cs2, cs3"):
            as_system(wrong)
    assert set(SYSTEMS) == {"cs1", "cs2", "cs3"}


def test_peaks_are_those_of_the_data_sheets() -> None:
    """Andromeda: 120 dense Pflop/s of 16 CS-2 with 850,000 cores at 1.1 GHz."""
    assert CS2.replace(clock_hz=1.1e9, rows=1000.0, cols=850.0).dense_peak_fp16_flops_per_second == pytest.approx(7.5e15, rel=0.01)
    assert CS3.dense_peak_fp32_flops_per_second == pytest.approx(1.5e15, rel=0.01)
