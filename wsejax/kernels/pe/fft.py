"""Discrete Fourier transforms over lines of PEs, as whole lines in one PE after an exchange (wsFFT, Orenes-Vera et al., ICS 2023).

Law: `numpy.fft.fft` to rounding of complex64, any length. A dimension that is split over a line of n PEs is transformed by an all-to-all
in that line, which gives each PE 1/n of the lines whole; a local transform; and the all-to-all back. Traffic: an all-to-all is n - 1 steps
of the ring.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Shaped

from wsejax import fabric
from wsejax.hardware import System
from wsejax.kernels.pe.collectives import ring_hops, ring_price
from wsejax.kernels.price import Price, computing, fma_per_cycle


def local_fft(x: Complex[Array, "... n"], inverse: bool = False) -> Complex[Array, "... n"]:
    """Mixed-radix transform of the last dimension, prime factors by their matrix; the inverse is scaled. Every PE does the same."""
    n = x.shape[-1]
    if not n:
        raise ValueError(f"x has shape {x.shape}: there is no transform of no elements")
    x = x.astype(jnp.complex64)
    out = _cooley_tukey(x, 1 if inverse else -1)
    return out / n if inverse else out


def _cooley_tukey(x, sign: int):
    n = x.shape[-1]
    radix = next((p for p in range(2, math.isqrt(n) + 1) if n % p == 0), n)
    if n == 1:
        return x
    rest = n // radix
    parts = jnp.moveaxis(x.reshape(*x.shape[:-1], rest, radix), -1, 0)  # part r: elements r, r + radix, ...
    along = (1,) * (x.ndim - 1) + (rest,)
    parts = [_cooley_tukey(part, sign) * _roots(n, r * np.arange(rest), sign).reshape(along) for r, part in enumerate(parts)]
    out = []
    for k in range(radix):
        total = parts[0]
        for r in range(1, radix):
            total = total + parts[r] * _roots(radix, np.array(r * k), sign)
        out.append(total)
    return jnp.concatenate(out, axis=-1)


def _roots(n: int, powers: np.ndarray, sign: int):
    return jnp.asarray(np.exp(sign * 2j * np.pi * (powers % n) / n), jnp.complex64)


def all_to_all(x: Shaped[Array, "R C n ..."], axis: str) -> Shaped[Array, "R C n ..."]:
    """Entry i of a PE's list goes to PE i of its line along `axis`; entry i of the result came from there."""
    n = fabric.extent(x, axis)
    here = jnp.clip(fabric.index(x, axis), 0, n - 1)
    place, order = jnp.asarray(fabric.ring_places(n))[here], jnp.asarray(fabric.ring_order(n))
    slot = jnp.arange(n).reshape(1, 1, n, *(1,) * (x.ndim - 3))

    def mine(lists):
        return jnp.take_along_axis(lists, jnp.broadcast_to(here, (*x.shape[:2], 1, *x.shape[3:])), axis=2)

    def step(k, state):
        lists, out = state
        lists = fabric.ring_shift(lists, axis)
        return lists, jnp.where(slot == order[(place - k - 1) % n], mine(lists), out)

    out = jnp.where(slot == here, mine(x), jnp.zeros((), x.dtype))
    return fabric.repeat(n - 1, step, (x, out))[1]


def fft_along(x: Complex[Array, "R C lanes m"], axis: str, length: int, inverse: bool = False) -> Complex[Array, "R C lanes m"]:
    """Transform the lines of `length` elements that lie m in each PE along `axis`, in natural order; what is padded comes back as zeros."""
    n, (rows, cols, lanes, m) = fabric.extent(x, axis), x.shape
    if not n * (m - 1) < length <= n * m:
        raise ValueError(
            f"length={length}: lines of {n} PEs with {m} elements each have {n * (m - 1) + 1} to {n * m}; cut them by to_tiles"
        )
    share = -(-lanes // n)
    lists = jnp.pad(x, [(0, 0), (0, 0), (0, n * share - lanes), (0, 0)]).reshape(rows, cols, n, share, m)
    lines = jnp.moveaxis(all_to_all(lists, axis), 2, 3).reshape(rows, cols, share, n * m)[..., :length]
    lines = jnp.pad(local_fft(lines, inverse), [(0, 0)] * 3 + [(0, n * m - length)])
    lists = jnp.moveaxis(lines.reshape(rows, cols, share, n, m), 3, 2)
    return all_to_all(lists, axis).reshape(rows, cols, n * share, m)[:, :, :lanes]


def fft2(x: Complex[Array, "R C h w"], shape: tuple[int, int], inverse: bool = False) -> Complex[Array, "R C h w"]:
    """Two-dimensional transform of an array of `shape` in tiles (`to_tiles`)."""
    x = fft_along(x, "x", shape[1], inverse)
    return jnp.swapaxes(fft_along(jnp.swapaxes(x, 2, 3), "y", shape[0], inverse), 2, 3)


def fft3(x: Complex[Array, "R C h w z"], shape: tuple[int, int, int], inverse: bool = False) -> Complex[Array, "R C h w z"]:
    """Three-dimensional transform, whole columns of z in PEs."""
    rows, cols, h, w, z = x.shape
    x = local_fft(x, inverse)
    x = jnp.moveaxis(x, 4, 3).reshape(rows, cols, h * z, w)
    x = fft_along(x, "x", shape[1], inverse).reshape(rows, cols, h, z, w)
    x = jnp.moveaxis(x, 2, 4).reshape(rows, cols, z * w, h)
    x = fft_along(x, "y", shape[0], inverse).reshape(rows, cols, z, w, h)
    return jnp.transpose(x, (0, 1, 4, 3, 2))


def factors(n: int, pes: int) -> tuple[int, int]:
    """n = n1 n2 for `fft1`: n1 is the least divisor of n with an element for each PE of the line, or the largest below that; not n itself,
    while there is another, for each PE transforms n2 as well."""
    divisors = [d for d in range(1, n + 1) if n % d == 0]
    enough = [d for d in divisors if d >= pes and d < n]
    n1 = enough[0] if enough else max(d for d in divisors if d < n or n == 1)
    return n1, n // n1


def fft1(x: Complex[Array, "R C h n2"], axis: str, n: int, inverse: bool = False) -> Complex[Array, "R C h n2"]:
    """One-dimensional transform over the line along `axis`: of n = n1 n2 elements (`factors`) it holds, row by row, a matrix of n1 rows,
    h in each PE. Element k1 + n1 k2 of the result is in row k1, column k2 (four steps, Bailey 1990)."""
    n2 = x.shape[3]
    n1 = n // n2
    if n1 * n2 != n:
        raise ValueError(f"n={n}: rows of {n2} elements do not divide it; choose n1 and n2 by factors({n}, PEs of the line)")
    sign = 1 if inverse else -1
    x = jnp.swapaxes(fft_along(jnp.swapaxes(x, 2, 3), axis, n1, inverse), 2, 3)
    k1 = fabric.index(x, axis) * x.shape[2] + jnp.arange(x.shape[2]).reshape(1, 1, -1, 1)
    table = _roots(n, np.arange(n), sign)  # n numbers; a PE of a real machine keeps its h n2 of them
    x = x * table[jnp.clip(k1, 0, n) * np.arange(n2).reshape(1, 1, 1, -1) % n]
    return local_fft(x, inverse)


def all_to_all_hops(n: int, lines: int) -> int:
    """Hops of a PE's whole list."""
    return (n - 1) * ring_hops(n) * lines


def fft_along_element_hops(grid: tuple[int, int], axis: str, lanes: int, m: int) -> int:
    """Two all-to-alls of lists of n ceil(lanes / n) m elements."""
    n, lines = grid if axis == "y" else grid[::-1]
    return 2 * all_to_all_hops(n, lines) * n * -(-lanes // n) * m


# ---- prices ----------------------------------------------------------------------------------------------------------
def _prime_factors(n: int) -> list[int]:
    out, p = [], 2
    while n > 1:
        while n % p == 0:
            out, n = [*out, p], n // p
        p = p + 1 if p * p <= n else max(n, p + 1)
    return out


def local_fft_price(system: System, lines: float, n: int, pes: int = 1, itemsize_bytes: int = 8) -> Price:
    """`local_fft` of `lines` lines in each of `pes` PEs: a level of radix p multiplies every element by p numbers, 4 real multiply-adds
    each, in p x p vector instructions."""
    levels = _prime_factors(n)
    fma = 4.0 * lines * n * sum(levels)
    starts = float(sum(p * p for p in levels))
    busy = starts * system.launch_cycles + fma / fma_per_cycle(system, itemsize_bytes // 2)
    return computing(busy, 2.0 * fma * pes, 3.0 * fma * pes * itemsize_bytes / 4.0)


def all_to_all_price(system: System, n: int, lines: int, list_bytes: float) -> Price:
    """`all_to_all` of a PE's list of so many bytes: n - 1 turns of the ring with all of it."""
    return ring_price(system, n, lines, list_bytes, n - 1.0)


def fft_along_price(system: System, grid: tuple[int, int], axis: str, lanes: int, m: int, itemsize_bytes: int = 8) -> Price:
    """`fft_along`: lines gathered, transformed and handed back."""
    n, lines = grid if axis == "y" else grid[::-1]
    share = -(-lanes // n)
    moving = all_to_all_price(system, n, lines, float(n * share * m * itemsize_bytes)) * 2.0
    return moving + local_fft_price(system, share, n * m, n * lines, itemsize_bytes)


def fft2_price(system: System, grid: tuple[int, int], tile: tuple[int, int], itemsize_bytes: int = 8) -> Price:
    """`fft2` of tiles of h x w."""
    h, w = tile
    return fft_along_price(system, grid, "x", h, w, itemsize_bytes) + fft_along_price(system, grid, "y", w, h, itemsize_bytes)


def fft3_price(system: System, grid: tuple[int, int], tile: tuple[int, int, int], itemsize_bytes: int = 8) -> Price:
    """`fft3` of tiles of h x w columns of z."""
    h, w, z = tile
    local = local_fft_price(system, h * w, z, grid[0] * grid[1], itemsize_bytes)
    return (
        local + fft_along_price(system, grid, "x", h * z, w, itemsize_bytes) + fft_along_price(system, grid, "y", w * z, h, itemsize_bytes)
    )


def fft1_price(system: System, grid: tuple[int, int], axis: str, n: int, n2: int, itemsize_bytes: int = 8) -> Price:
    """`fft1` of n elements as a matrix with rows of n2, whole rows in a PE: one transform across, twiddles, one inside."""
    pes_of_line = grid[0] if axis == "y" else grid[1]
    h, pes = -(-(n // n2) // pes_of_line), grid[0] * grid[1]
    rate = fma_per_cycle(system, itemsize_bytes // 2)
    twiddles = computing(system.launch_cycles + 4.0 * h * n2 / rate, 8.0 * h * n2 * pes, 3.0 * h * n2 * pes * itemsize_bytes)
    return fft_along_price(system, grid, axis, n2, h, itemsize_bytes) + twiddles + local_fft_price(system, h, n2, pes, itemsize_bytes)
