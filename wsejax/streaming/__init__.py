"""Weights from outside the wafer, and more wafers than one: how a cluster runs a program, and when."""

from wsejax.streaming import partition_loops, partition_rules, partition_sums, swarm
from wsejax.streaming.jit import ClusterFunction, jit
from wsejax.streaming.partition import Partitioned, Share, partition
from wsejax.streaming.schedule import Layer, Schedule, Stage, layer_stages, least_tokens, schedule, slack_seconds
from wsejax.streaming.store import Stored, create_state, open_state

__all__ = [
    "ClusterFunction", "Layer", "Partitioned", "Schedule", "Share", "Stage", "Stored", "create_state", "jit", "layer_stages",
    "least_tokens", "open_state", "partition", "partition_loops", "partition_rules", "partition_sums", "schedule", "slack_seconds",
    "swarm",
]  # fmt: skip
