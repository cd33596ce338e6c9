"""What people look at."""

from .audit import audit_table
from .comparison import comparison_table, plot_breakdown, plot_tornado, tco_table
from .errors import error_of, errors_text, kernel_errors
from .faults import plot_bitflips
from .generation import generation_table
from .plots import plot_loss, plot_wafer, plot_yield
from .pricing import cost_table, memory_table, plot_memory, plot_timeline, seconds_text
from .sparsity import plot_activation_sparsity, sparsity_table
from .streaming import clusters_table, plot_scaling, plot_stall, published_scaling_table, scaling_table
from .sweeps import plot_sweep
from .tables import Sheet
from .traffic import plot_traffic
from .transfer import plot_transfer
from .validation import plot_validation, validation_table

__all__ = [
    "Sheet", "audit_table", "clusters_table", "comparison_table", "cost_table", "error_of", "errors_text", "generation_table",
    "kernel_errors", "memory_table", "plot_activation_sparsity", "plot_bitflips", "plot_breakdown", "plot_loss", "plot_memory",
    "plot_scaling", "plot_stall", "plot_sweep", "plot_timeline", "plot_tornado", "plot_traffic", "plot_transfer", "plot_validation",
    "plot_wafer", "plot_yield", "published_scaling_table", "scaling_table", "seconds_text", "sparsity_table", "tco_table",
    "validation_table",
]  # fmt: skip
