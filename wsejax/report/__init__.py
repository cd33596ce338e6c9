"""What people look at."""

from .faults import plot_bitflips
from .plots import plot_loss, plot_wafer, plot_yield
from .traffic import plot_traffic
from .validation import plot_validation, validation_table

__all__ = ["plot_bitflips", "plot_loss", "plot_traffic", "plot_validation", "plot_wafer", "plot_yield", "validation_table"]
