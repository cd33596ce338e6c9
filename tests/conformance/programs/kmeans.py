"""Lloyd's k-means: a while loop until no point changes its cluster, and a fixed number of rounds with segment sums."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

CLUSTERS = 5


def points(count: int, features: int):
    r = np.random.default_rng(9)
    middles = 4 * r.standard_normal((CLUSTERS, features))
    data = (middles[r.integers(0, CLUSTERS, count)] + r.standard_normal((count, features))).astype(np.float32)
    return data, data[:CLUSTERS].copy()


def nearest(data, middles):
    distance = jnp.sum((data[:, None] - middles) ** 2, -1)
    return distance.argmin(1), distance.min(1).sum()


def until_steady(data, middles):
    def again(state):
        return state["moved"] & (state["rounds"] < 30)

    def round_(state):
        member = jax.nn.one_hot(state["label"], CLUSTERS)
        count = member.sum(0)[:, None]
        middles = jnp.where(count > 0, member.T @ data / jnp.maximum(count, 1), state["middles"])
        label, inertia = nearest(data, middles)
        moved = (label != state["label"]).any()
        return {"middles": middles, "label": label, "inertia": inertia, "moved": moved, "rounds": state["rounds"] + 1}

    label, inertia = nearest(data, middles)
    first = {"middles": middles, "label": label, "inertia": inertia, "moved": jnp.bool_(True), "rounds": jnp.int32(0)}
    return lax.while_loop(again, round_, first)


def ten_rounds(data, middles):
    def round_(_, middles):
        label, _ = nearest(data, middles)
        total = jax.ops.segment_sum(data, label, CLUSTERS)
        count = jax.ops.segment_sum(jnp.ones(len(data)), label, CLUSTERS)
        return total / jnp.maximum(count, 1)[:, None]

    middles = lax.fori_loop(0, 10, round_, middles)
    return middles, *nearest(data, middles)


def while_loop():
    return until_steady, points(64, 8)


def fori_loop():
    return ten_rounds, points(61, 3)
