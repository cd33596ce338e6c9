"""What a program, a model or a machine would cost: prices as pure functions of data. All times are modelled."""

from wsejax.cost.compare import Comparison, compare
from wsejax.cost.errors import model_error
from wsejax.cost.estimate import Fit, fits
from wsejax.cost.llm import LLM
from wsejax.cost.memory import Memory, memory
from wsejax.cost.model import Cost, UnknownTripsError, cost
from wsejax.cost.pipeline import Deployment, deploy
from wsejax.cost.serving import Served, serve
from wsejax.cost.timeline import Timeline, timeline
from wsejax.cost.validation import Validation, validate
from wsejax.cost.workload import Workload

__all__ = [
    "LLM", "Comparison", "Cost", "Deployment", "Fit", "Memory", "Served", "Timeline", "UnknownTripsError", "Validation", "Workload",
    "compare", "cost", "deploy", "fits", "memory", "model_error", "serve", "timeline", "validate",
]  # fmt: skip
