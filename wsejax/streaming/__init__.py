"""Weights from outside the wafer, and more wafers than one: how a cluster runs a program."""

from wsejax.streaming.jit import ClusterFunction, jit

__all__ = ["ClusterFunction", "jit"]
