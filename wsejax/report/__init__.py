"""What people look at."""

from .plots import plot_loss, plot_wafer

__all__ = ["plot_loss", "plot_wafer"]
