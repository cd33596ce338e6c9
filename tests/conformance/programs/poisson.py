"""Poisson's equation on a periodic plane in Fourier space: transforms axis by axis, and the real transform of both at once."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np


def wavenumbers(n: int):
    return 2 * jnp.pi * jnp.fft.fftfreq(n)


def axis_by_axis(charge):
    ky, kx = (wavenumbers(n) for n in charge.shape)
    square = ky[:, None] ** 2 + kx**2
    spectrum = jnp.fft.fft(jnp.fft.fft(charge, axis=0), axis=1)
    spectrum = jnp.where(square > 0, spectrum / jnp.where(square > 0, square, 1), 0)
    potential = jnp.fft.ifft(jnp.fft.ifft(spectrum, axis=1), axis=0).real
    field = jnp.fft.ifft2(-1j * ky[:, None] * spectrum).real
    return potential, field


def real_transform(charge):
    ky, kx = wavenumbers(charge.shape[0]), 2 * jnp.pi * jnp.fft.rfftfreq(charge.shape[1])
    square = (4 - 2 * jnp.cos(ky))[:, None] - 2 * jnp.cos(kx)  # of the five-point stencil
    spectrum = jnp.fft.rfft2(charge) / jnp.where(square > 1e-6, square, jnp.inf)
    potential = jnp.fft.irfft2(spectrum, s=charge.shape)
    around = sum(jnp.roll(potential, shift, axis) for shift in (1, -1) for axis in (0, 1))
    return potential, 4 * potential - around - charge


def charge(rows: int, cols: int):
    rho = np.random.default_rng(11).standard_normal((rows, cols)).astype(np.float32)
    return rho - rho.mean()


def complex_transforms():
    return axis_by_axis, (charge(32, 16),)


def real_transforms():
    return real_transform, (charge(16, 24),)
