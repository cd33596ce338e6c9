"""What people look at."""

from .faults import plot_bitflips
from .plots import plot_loss, plot_wafer, plot_yield
from .traffic import plot_traffic

__all__ = ["plot_bitflips", "plot_loss", "plot_traffic", "plot_wafer", "plot_yield"]
