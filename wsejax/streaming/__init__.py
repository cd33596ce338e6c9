"""Weights from outside the wafer, and more wafers than one: how a cluster runs a program."""

from wsejax.streaming import partition_loops, partition_rules, partition_sums, swarm
from wsejax.streaming.jit import ClusterFunction, jit
from wsejax.streaming.partition import Partitioned, Share, partition
from wsejax.streaming.store import Stored, create_state, open_state

__all__ = [
    "ClusterFunction", "Partitioned", "Share", "Stored", "create_state", "jit", "open_state", "partition", "partition_loops",
    "partition_rules", "partition_sums", "swarm",
]  # fmt: skip
