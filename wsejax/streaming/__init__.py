"""Programs on several wafers: how a batch is shared, and what goes through the tree that joins them."""

from wsejax.streaming import partition_loops, partition_rules, partition_sums, rules
from wsejax.streaming.partition import Partitioned, Share, partition

__all__ = ["Partitioned", "Share", "partition", "partition_loops", "partition_rules", "partition_sums", "rules"]
