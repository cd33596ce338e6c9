"""Programs that know nothing of the wafer: `wse.jit` runs each as it stands, strictly, and gives what plain `jax.jit` gives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from tests.conformance.against_plain import assert_as_plain, assert_as_plain_in_the_same_bits_on, assert_same_bits, in_plain_jax, on_wafer
from tests.conformance.programs import PROGRAMS


@pytest.fixture(autouse=True)
def as_jax_comes():
    """Other people's programs broadcast; the house's own may not."""
    with jax.numpy_rank_promotion("allow"):
        yield


def slow_from(seconds: int) -> list:
    """The programs' names, marked slow where one compilation takes so long."""
    return [pytest.param(name, marks=[pytest.mark.slow] if p.seconds >= seconds else []) for name, p in PROGRAMS.items()]


@pytest.mark.parametrize("name", slow_from(15))
def test_a_program_gives_what_plain_jax_gives(name):
    assert_as_plain(PROGRAMS[name], on_wafer(PROGRAMS[name], (2, 2), (2, 2)))


@pytest.mark.parametrize(
    ("name", "tiles"),
    [pytest.param(name, (2, 2), marks=[pytest.mark.slow] if p.seconds >= 2 else []) for name, p in PROGRAMS.items()]
    + [pytest.param(name, (4, 4), marks=pytest.mark.slow) for name, p in PROGRAMS.items() if p.seconds < 8],
    ids=str,
)
def test_a_program_gives_the_same_bits_on_every_device_mesh_and_what_plain_jax_gives(name, tiles):
    assert_as_plain_in_the_same_bits_on([(1, 1), (1, 2), (2, 2)], PROGRAMS[name], tiles)


def test_the_comparison_sees_a_small_error_a_wrong_label_and_one_bit():
    program = PROGRAMS["k-means in a while loop"]
    right, _ = in_plain_jax(program)
    assert_as_plain(program, right)
    for wrong in ({"middles": right["middles"] * 1.0001}, {"label": right["label"].at[3].add(1)}):
        with pytest.raises(AssertionError, match=next(iter(wrong))):
            assert_as_plain(program, {**right, **wrong})
    with pytest.raises(AssertionError, match="inertia"):
        assert_same_bits({**right, "inertia": jnp.nextafter(right["inertia"], 0)}, right)
