"""What a program, a model or a machine would cost: prices as pure functions of data. All times are modelled."""

from wsejax.cost.compare import Comparison, compare
from wsejax.cost.llm import LLM
from wsejax.cost.memory import Memory, memory
from wsejax.cost.model import Cost, UnknownTripsError, cost
from wsejax.cost.timeline import Timeline, timeline
from wsejax.cost.workload import Workload

__all__ = [
    "LLM", "Comparison", "Cost", "Memory", "Timeline", "UnknownTripsError", "Workload", "compare", "cost", "memory", "timeline",
]  # fmt: skip
