"""What people look at."""

from .faults import plot_bitflips
from .plots import plot_loss, plot_wafer, plot_yield
from .pricing import cost_table, memory_table, plot_memory, plot_timeline, seconds_text
from .traffic import plot_traffic

__all__ = [
    "cost_table", "memory_table", "plot_bitflips", "plot_loss", "plot_memory", "plot_timeline", "plot_traffic", "plot_wafer", "plot_yield",
    "seconds_text",
]  # fmt: skip
