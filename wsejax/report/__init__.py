"""What people look at."""

from .plots import plot_loss, plot_wafer, plot_yield

__all__ = ["plot_loss", "plot_wafer", "plot_yield"]
