"""What a program, a model or a machine would cost: prices as pure functions of data. All times are modelled."""

from wsejax.cost.llm import LLM
from wsejax.cost.memory import Memory, memory
from wsejax.cost.model import Cost, UnknownTripsError, cost
from wsejax.cost.timeline import Timeline, timeline

__all__ = ["LLM", "Cost", "Memory", "Timeline", "UnknownTripsError", "cost", "memory", "timeline"]
