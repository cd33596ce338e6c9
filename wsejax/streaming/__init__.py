"""Weights from outside the wafer, and more wafers than one: how a cluster runs a program."""

from wsejax.streaming import partition_loops, partition_rules, partition_sums, swarm
from wsejax.streaming.jit import ClusterFunction, jit
from wsejax.streaming.partition import Partitioned, Share, partition

__all__ = ["ClusterFunction", "Partitioned", "Share", "jit", "partition", "partition_loops", "partition_rules", "partition_sums", "swarm"]
