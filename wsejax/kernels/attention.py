"""Ring attention in tile order (Liu, Zaharia and Abbeel 2023, "Ring attention with blockwise transformers for near-infinite context").

The sequence is split over the tiles of one mesh axis. Queries stay; keys and values travel round the folded ring of tiles, and every
tile folds each key-value tile that comes by into a running softmax (Milakov and Gimelshein 2018): it never holds more scores than its own
rows against one tile of keys. It starts with its own keys, then takes those of its ring predecessor, and so on: an order that the
tile's number alone decides. On the way back the keys and values travel again, together with the accumulators of their own gradients.

A device does a ring step of all its tiles at once, in products batched over tiles, batch and heads. XLA on CPU does these one by one, so
their bits do not depend on how many there are (measured; tests/kernels holds it), nor therefore on the device mesh.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from wsejax import fabric
from wsejax.kernels.reduce import tree_reduce
from wsejax.kernels.relayout import gather_byte_hops

# Inside, arrays are (tiles here, batch, kv_heads, rows, columns), the tiles in ring order. The query heads that share a key-value head are
# rows of one product, head after head.
BATCH = (0, 1, 2)
ROW, COL = 3, 4


@dataclasses.dataclass(frozen=True)
class Ring:
    """What is static about an attention: `tiles` along mesh axis `axis`, the lengths without padding, and what a query sees. Without an
    axis the sequence is whole: a ring of one tile.

    The query at position i sees the keys at i - left to i + right; None is no bound.
    """

    axis: str
    tiles: int
    seq_len_q: int
    seq_len_kv: int
    scale: float
    left: int | None = None
    right: int | None = None

    @property
    def devices(self) -> int:
        return fabric.size(self.axis) if self.axis else 1

    def mine(self) -> Int[Array, "here"]:
        """Numbers of this device's tiles, in ring order."""
        if not self.axis:
            return jnp.zeros(1, jnp.int32)
        return fabric.ring_tiles(self.axis, self.tiles)

    def held(self, step: int | Int[Array, ""]) -> Int[Array, "here"]:
        """Numbers of the key-value tiles that are with this device's tiles at a ring step."""
        order = np.array(fabric.ring_order(self.tiles))
        return jnp.asarray(order)[(jnp.asarray(np.argsort(order))[self.mine()] - step) % self.tiles]

    def cut(self, x: Array, seq_len: int, heads: int) -> Array:
        """(batch, tokens, heads * group, dim) to (here, batch, heads, group * tokens a tile, dim); padding becomes zero, even a NaN."""
        batch, tokens, _, dim = x.shape
        here = self.tiles // self.devices
        at = (fabric.coordinate(self.axis) * tokens if self.axis else 0) + jnp.arange(tokens)
        x = jnp.where((at < seq_len)[None, :, None, None], x, jnp.zeros_like(x))
        x = x.reshape(batch, here, tokens // here, -1, dim).transpose(1, 0, 3, 2, 4)
        return x[self.mine() % here].reshape(here, batch, heads, -1, dim)

    def join(self, x: Array, heads: int) -> Array:
        """The way back from `cut`, to (batch, tokens, heads, dim)."""
        here, batch, _, _, dim = x.shape
        x = x[jnp.argsort(self.mine())].reshape(here, batch, heads, -1, dim)
        return x.transpose(1, 0, 3, 2, 4).reshape(batch, -1, heads, dim)

    def turn(self, update: Callable, travel: Any, rest: Any) -> tuple[Any, Any]:
        """`travel, rest = update(travel, rest, step)` at every ring step; between them each tile of `travel` goes on to its successor."""

        def step(state, number):
            travel, rest = update(*state, number)
            return (self.send(travel), rest), None

        if self.tiles > 1:
            (travel, rest), _ = lax.scan(step, (travel, rest), jnp.arange(self.tiles - 1))
        return update(travel, rest, self.tiles - 1)

    def send(self, travel: Any) -> Any:
        return jax.tree.map(lambda x: fabric.ring_pass(x, self.axis), travel) if self.tiles > 1 else travel


def _dot(a: Array, b: Array, contract_a: int, contract_b: int) -> Array:
    """A product batched over tiles, batch and heads. Between barriers: XLA must not make another product of it, whatever is around it."""
    a, b = lax.optimization_barrier((a, b))
    return lax.optimization_barrier(lax.dot_general(a, b, (((contract_a,), (contract_b,)), (BATCH, BATCH))))


def _sum(x: Array) -> Array:
    """Over the last dimension, which is kept with length one."""
    return tree_reduce(x, (COL,), jnp.add)[..., None]


def _scores(q: Array, k: Array, kv_mask: Array | None, ring: Ring, step, rows: int) -> Array:
    """Scores of this ring step, -inf where a query does not see a key; `rows` is the number of query tokens in a tile."""
    keys = k.shape[ROW]
    i = ring.mine()[:, None] * rows + (jnp.arange(q.shape[ROW]) % rows)[None]
    j = ring.held(step)[:, None] * keys + jnp.arange(keys)[None]
    i, j = i[:, None, None, :, None], j[:, None, None, None, :]
    seen = (i < ring.seq_len_q) & (j < ring.seq_len_kv)
    if ring.left is not None:
        seen &= j >= i - ring.left
    if ring.right is not None:
        seen &= j <= i + ring.right
    if kv_mask is not None:
        seen &= kv_mask.swapaxes(ROW, COL)
    return lax.optimization_barrier(jnp.where(seen, _dot(q, k, COL, COL), -jnp.inf))  # once, not in every pass that reads them


def _operands(q, k, v, kv_mask, ring: Ring):
    """Scaled queries, what travels (keys and values as one message, and their mask), and the number of query tokens in a tile."""
    heads = k.shape[2]
    wide = jnp.result_type(q, k, jnp.float32)
    rows = q.shape[1] * ring.devices // ring.tiles
    kv = jnp.stack([ring.cut(x, ring.seq_len_kv, heads) for x in (k, v)], axis=1)
    mask = None if kv_mask is None else ring.cut(kv_mask[:, :, None, None], ring.seq_len_kv, 1)
    return ring.cut(q, ring.seq_len_q, heads).astype(wide) * ring.scale, (kv, mask), rows


def ring_forward(
    q: Float[Array, "batch rows heads dim"],
    k: Float[Array, "batch keys kv_heads dim"],
    v: Float[Array, "batch keys kv_heads dim"],
    kv_mask: Bool[Array, "batch keys"] | None,
    ring: Ring,
) -> tuple[Float[Array, "batch rows heads dim"], Float[Array, "batch rows heads 1"]]:
    """(output, logarithm of each row's sum of exponentials, at least float32): one turn of the ring, less the step home."""
    qs, travel, rows = _operands(q, k, v, kv_mask, ring)

    def update(travel, rest, step):
        (kv, mask), (top, total, acc) = travel, rest
        k, v = kv[:, 0].astype(qs.dtype), kv[:, 1].astype(qs.dtype)
        s = _scores(qs, k, mask, ring, step, rows)
        highest = jnp.maximum(top, tree_reduce(s, (COL,), jnp.maximum, -jnp.inf)[..., None])
        base = jnp.where(highest == -jnp.inf, 0.0, highest)  # a row that has seen no key yet
        p, fade = lax.optimization_barrier((jnp.exp(s - base), jnp.exp(top - base)))
        return travel, (highest, total * fade + _sum(p), acc * fade + _dot(p, v, COL, ROW))

    zero = jnp.zeros((*qs.shape[:COL], 1), qs.dtype)
    _, (top, total, acc) = ring.turn(update, travel, (zero - jnp.inf, zero, jnp.zeros_like(qs)))
    seen = total != 0  # a NaN stays one
    total = jnp.where(seen, total, 1.0)
    out = jnp.where(seen, acc * (1.0 / total), 0.0).astype(q.dtype)
    lse = jnp.where(seen, top + jnp.log(total), 0.0)
    return ring.join(out, q.shape[2]), ring.join(lse, q.shape[2])


def ring_backward(q, k, v, kv_mask, out, lse, d_out, ring: Ring) -> tuple[Array, Array, Array]:
    """Gradients of q, k and v from the results of `ring_forward`: a full turn, in which gradients of keys and values travel with them."""
    heads = k.shape[2]
    qs, (kv, mask), rows = _operands(q, k, v, kv_mask, ring)
    out, lse, d_out = (ring.cut(x, ring.seq_len_q, heads).astype(qs.dtype) for x in (out, lse, d_out))
    delta = _sum(lax.optimization_barrier(out * d_out))

    def update(travel, dq, step):
        kv, mask, d_kv = travel
        k, v = kv[:, 0].astype(qs.dtype), kv[:, 1].astype(qs.dtype)
        p = jnp.exp(_scores(qs, k, mask, ring, step, rows) - lse)
        ds = p * (_dot(d_out, v, COL, COL) - delta)
        d_kv += jnp.stack([_dot(ds, qs, ROW, ROW), _dot(p, d_out, ROW, ROW)], axis=1)
        return (kv, mask, d_kv), dq + _dot(ds, k, COL, ROW)

    (_, _, d_kv), dq = ring.turn(update, (kv, mask, jnp.zeros(kv.shape, qs.dtype)), jnp.zeros_like(qs))
    d_kv = ring.send(d_kv)
    dk, dv = (ring.join(d_kv[:, n], heads).astype(k.dtype) for n in (0, 1))
    return ring.join(dq * ring.scale, q.shape[2]).astype(q.dtype), dk, dv


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(q, k, v, kv_mask, ring: Ring):
    return ring_forward(q, k, v, kv_mask, ring)[0]


def _attention_fwd(q, k, v, kv_mask, ring: Ring):
    out, lse = ring_forward(q, k, v, kv_mask, ring)
    return out, (q, k, v, kv_mask, out, lse)


def _attention_bwd(ring: Ring, saved, d_out):
    q, k, v, kv_mask, out, lse = saved
    return *ring_backward(q, k, v, kv_mask, out, lse, d_out, ring), None


_attention.defvjp(_attention_fwd, _attention_bwd)


def ring_attention(
    q: Float[Array, "batch rows heads dim"],
    k: Float[Array, "batch keys kv_heads dim"],
    v: Float[Array, "batch keys kv_heads dim"],
    axis: str,
    *,
    seq_len_q: int,
    seq_len_kv: int,
    tiles_on_axis: int,
    causal: bool = False,
    window: tuple[int, int] | None = None,
    kv_mask: Bool[Array, "batch keys"] | None = None,
    scale: float | None = None,
) -> Float[Array, "batch rows heads dim"]:
    """Softmax attention of this device's blocks, as `jax.nn.dot_product_attention`, with gradients. Runs inside `fabric.on_mesh`.

    Scores, softmax and sums are float32 (float64 for float64). The bits depend on `tiles_on_axis`, not on the devices.

    Args:
      q: block of the queries: the token dimension is split over `axis`; batch and heads may be split over the other axis.
      k, v: blocks of the keys and values, split in the same way: `heads` is the same multiple of `kv_heads` on every device mesh.
      axis: mesh axis ("y" or "x") that splits the tokens.
      seq_len_q, seq_len_kv: tokens of the whole sequences; what the blocks hold beyond them is padding and is never looked at.
      tiles_on_axis: tiles along `axis`; tokens divide by them.
      causal: a query sees no later key (positions count from the first token, for queries and keys alike).
      window: a query at position i sees keys i - window[0] to i + window[1] only.
      kv_mask: block of the keys' mask, split as they are; False hides a key from all queries.
      scale: of the scores, by default 1 / sqrt(dim).

    Returns:
      Block of the output, laid out and of the dtype as `q`. A query that sees no key, and padding, give zeros (as no gradient).

    Raises:
      ValueError: shapes or dtypes that do not fit together, tokens that do not divide by the tiles, or a length beyond the blocks.
    """
    if k.shape != v.shape or k.dtype != v.dtype:
        raise ValueError(f"k is {k.dtype}{k.shape}, v is {v.dtype}{v.shape}: they travel as one message, so they must be alike")
    if q.ndim != 4 or k.ndim != 4 or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or q.shape[2] % k.shape[2]:
        raise ValueError(f"q has shape {q.shape}, k {k.shape}: give (batch, tokens, heads, dim), heads a multiple of k's")
    if kv_mask is not None and kv_mask.shape != k.shape[:2]:
        raise ValueError(f"kv_mask has shape {kv_mask.shape}, k {k.shape}: give (batch, tokens) of k")
    for name, x, length in (("q", q, seq_len_q), ("k", k, seq_len_kv)):
        tokens = x.shape[1] * fabric.size(axis)
        if tokens % tiles_on_axis or not 0 <= length <= tokens:
            raise ValueError(
                f"{name} has {tokens} tokens for {tiles_on_axis} tiles and seq_len={length}: pad it to a multiple, at least that"
            )
    left, right = window or (None, None)
    if causal:
        right = 0 if right is None else min(right, 0)
    scale = float(q.shape[3] ** -0.5 if scale is None else scale)
    return _attention(q, k, v, kv_mask, Ring(axis, tiles_on_axis, seq_len_q, seq_len_kv, scale, left, right))


def ring_byte_hops(tile_bytes: int, line: int, lines: int, accumulator_bytes: int = 0) -> int:
    """Bytes times hops of an attention round folded rings of `line` tiles, on `lines` parallel lines, if each tile is a device.

    Args:
      tile_bytes: what travels of one tile: its keys and values, and their mask at one byte a key.
      accumulator_bytes: of the gradients that travel with them on the way back (in float32), a full turn; 0 for the forward pass.
    """
    home = accumulator_bytes * lines * 2 * (line - 1)
    return gather_byte_hops(tile_bytes + accumulator_bytes, line, lines) + home
