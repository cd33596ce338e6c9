"""What people look at."""

from .faults import plot_bitflips
from .plots import plot_loss, plot_wafer, plot_yield

__all__ = ["plot_bitflips", "plot_loss", "plot_wafer", "plot_yield"]
