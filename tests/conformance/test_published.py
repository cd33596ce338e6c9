"""Networks and train steps that others published as packages: the same as for our own programs. Those that are not installed are
skipped; the extra `published`, which `make test` installs, brings all but heal-swin-nnx, whose dependencies take 100 MB."""

from __future__ import annotations

import jax
import pytest

from tests.conformance.against_plain import assert_as_plain, assert_as_plain_in_the_same_bits_on, on_wafer
from tests.conformance.programs import Program, published

PROGRAMS = {
    "proximal policy optimisation": ("nnx_ppo.algorithms.ppo", Program(published.ppo, steps=2)),
    "convolution and attention": ("nmn.nnx", Program(published.yat_classifier)),
    "chebyshev network": ("jaxkan.models.KAN", Program(published.chebyshev_kan)),
    "spline network": ("jaxkan.models.KAN", Program(published.spline_kan)),
    "normalizing flow": ("bijx", Program(published.flow)),
    "swin u-net": ("heal_swin_nnx", Program(published.swin)),
}


SLOW = {"proximal policy optimisation"}  # over 20 s


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in PROGRAMS])
def program(request: pytest.FixtureRequest):
    package, program = PROGRAMS[request.param]
    pytest.importorskip(package, exc_type=ImportError)  # ImportError: installed, but not for this version of JAX
    with jax.numpy_rank_promotion("allow"):
        yield program


def test_a_published_program_gives_what_plain_jax_gives(program):
    assert_as_plain(program, on_wafer(program, (2, 2), (2, 2)))


@pytest.mark.slow  # three compilations
@pytest.mark.parametrize("tiles", [(2, 2), (4, 4)], ids=str)
def test_a_published_program_gives_the_same_bits_on_every_device_mesh_and_what_plain_jax_gives(program, tiles):
    assert_as_plain_in_the_same_bits_on([(1, 1), (1, 2), (2, 2)], program, tiles)
