"""What collectives cost on chips that send messages: a message of S bytes takes alpha + S / B (Hockney 1994), closed forms by algorithm.

A chip sends one message and receives one at a time. The forms are those of Thakur, Rabenseifner and Gropp, "Optimization of collective
communication operations in MPICH" (2005), and Patarasuk and Yuan (2009) for the ring, whose 2 (n-1)/n S no all-reduce can send less than.
The popular saying has it the wrong way round: a ring's latency is O(n), a tree's O(log n), and what the ring sends hardly grows with n.

Pure functions of floats; `n` is a number of chips, sizes are in bytes, results in seconds.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from wsejax.kernels.price import ceil, most


@functools.partial(jax.tree_util.register_dataclass, data_fields=["latency_seconds", "bytes_per_second"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Link:
    """alpha and B of a chip's way to another, one way."""

    latency_seconds: Any
    bytes_per_second: Any

    def seconds(self, size_bytes: Any) -> Any:
        return self.latency_seconds + size_bytes / self.bytes_per_second


def levels(n: Any) -> Any:
    """Of a binary tree over n chips: log2 n, rounded up."""
    if isinstance(n, int | float):
        return float((math.ceil(n) - 1).bit_length())
    return ceil(jnp.log2(n))


def ring_reduce_scatter(n: Any, size_bytes: Any, link: Link) -> Any:
    """n - 1 steps, in each of which every chip passes one n-th on."""
    return (n - 1) * link.seconds(size_bytes / n)


def ring_all_gather(n: Any, size_bytes: Any, link: Link) -> Any:
    """Of `size_bytes` in all, one n-th from each: the same steps."""
    return (n - 1) * link.seconds(size_bytes / n)


def ring_all_reduce(n: Any, size_bytes: Any, link: Link) -> Any:
    """2 (n-1) (alpha + S / n B): latency O(n), bandwidth 2 (n-1)/n S."""
    return ring_reduce_scatter(n, size_bytes, link) + ring_all_gather(n, size_bytes, link)


def ring_broadcast(n: Any, size_bytes: Any, link: Link, chunks: Any = 1) -> Any:
    """Down a line of n chips in so many chunks, each sent on while the next arrives."""
    return (n - 2 + chunks) * link.seconds(size_bytes / chunks)


def tree_broadcast(n: Any, size_bytes: Any, link: Link) -> Any:
    """Binomial: at each level those that have it send all of it to as many that have not."""
    return levels(n) * link.seconds(size_bytes)


def tree_all_reduce(n: Any, size_bytes: Any, link: Link) -> Any:
    """Binomial reduce and broadcast: 2 log2 n (alpha + S / B)."""
    return 2 * tree_broadcast(n, size_bytes, link)


def halving_reduce_scatter(n: Any, size_bytes: Any, link: Link) -> Any:
    """Recursive halving, n a power of two: log2 n steps that send S/2, S/4, and so on."""
    return levels(n) * link.latency_seconds + (n - 1) / n * size_bytes / link.bytes_per_second


def doubling_all_gather(n: Any, size_bytes: Any, link: Link) -> Any:
    """Recursive doubling, n a power of two."""
    return halving_reduce_scatter(n, size_bytes, link)


def halving_all_reduce(n: Any, size_bytes: Any, link: Link) -> Any:
    """Rabenseifner: the ring's bandwidth at a tree's latency, n a power of two."""
    return halving_reduce_scatter(n, size_bytes, link) + doubling_all_gather(n, size_bytes, link)


def hierarchical_all_reduce(per_domain: Any, domains: Any, size_bytes: Any, inside: Link, outside: Link) -> Any:
    """Reduce-scatter in a domain, a ring of domains for each chip's part over its own share of the NICs, all-gather in the domain."""
    within = ring_reduce_scatter(per_domain, size_bytes, inside) + ring_all_gather(per_domain, size_bytes, inside)
    return within + ring_all_reduce(domains, size_bytes / per_domain, outside)


def hierarchical_all_gather(per_domain: Any, domains: Any, size_bytes: Any, inside: Link, outside: Link) -> Any:
    """Between domains first, where each chip gathers the parts of its peers, then within: of `size_bytes` in all. A reduce-scatter is this
    backwards and takes as long."""
    return ring_all_gather(domains, size_bytes / per_domain, outside) + ring_all_gather(per_domain, size_bytes, inside)


def pipelined_all_reduce(per_domain: Any, domains: Any, size_bytes: Any, inside: Link, outside: Link) -> Any:
    """The hierarchy in so many chunks that both kinds of link are busy at once: the slower one counts, and each latency once."""
    within = 2 * (per_domain - 1) / per_domain * size_bytes / inside.bytes_per_second
    between = 2 * (domains - 1) / domains * size_bytes / per_domain / outside.bytes_per_second
    return 2 * (per_domain - 1) * inside.latency_seconds + 2 * (domains - 1) * outside.latency_seconds + most(within, between)


def _slowest(domains: Any, inside: Link, outside: Link) -> Link:
    """The link that a ring or a tree over all chips waits for."""
    if isinstance(domains, int | float):
        return outside if domains > 1 else inside
    return jax.tree.map(lambda within, between: jnp.where(domains > 1, between, within), inside, outside)


def _flat(form: Callable[[Any, Any, Link], Any]) -> Callable[[Any, Any, Any, Link, Link], Any]:
    return lambda each, domains, size, inside, outside: form(each * domains, size, _slowest(domains, inside, outside))


ALL_REDUCES: Mapping[str, Callable[[Any, Any, Any, Link, Link], Any]] = {
    "ring": _flat(ring_all_reduce),
    "tree": _flat(tree_all_reduce),
    "halving": _flat(halving_all_reduce),
    "hierarchical": hierarchical_all_reduce,
    "pipelined": pipelined_all_reduce,
}
"""By name, of (chips in a domain, domains, bytes, link inside, link outside). The flat ones go at the pace of the slowest link."""
