"""Weights from outside the wafer, and more wafers than one: how a cluster runs a program, and when."""

from wsejax.streaming.jit import ClusterFunction, jit
from wsejax.streaming.schedule import Layer, Schedule, Stage, layer_stages, least_tokens, schedule, slack_seconds

__all__ = ["ClusterFunction", "Layer", "Schedule", "Stage", "jit", "layer_stages", "least_tokens", "schedule", "slack_seconds"]
