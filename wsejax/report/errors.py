"""How far off modelled times are, in the words that stand beside them: errors against published measurements, of the groups that come
nearest."""

from __future__ import annotations

from collections.abc import Mapping

from ..cost import Cost
from ..cost.errors import model_error

# Kernels by how their name begins, with the group of published points whose model they share; the first that matches.
KERNELS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("gemm", "dot_general", "conv"), "GEMM, local"),  # products inside PEs; that of a whole grid has no published point to itself
    (("reduce_", "argmax", "argmin", "cum"), "Reduction"),
    (("halo", "shift", "slice", "pad", "concatenate"), "Link"),
    (("relayout", "take_rows", "add_rows", "gather", "scatter"), "Multicast"),
    (("exp", "log", "tanh", "logistic", "sin", "cos", "erf", "pow", "sqrt", "rsqrt", "div"), "PE functions"),
    (("add", "sub", "mul", "neg", "max", "min", "select", "square", "convert", "integer_pow"), "PE instructions"),
)
WORTH_NAMING = 0.01  # of the cycles


def error_of(group: str) -> str:
    """In words; also of a group that no published point counts for."""
    try:
        return str(model_error(group))
    except ValueError:
        return "no published point to hold it against"


def kernel_errors(cost: Cost) -> dict[str, tuple[float, str]]:
    """Group -> (share of the modelled cycles that its model priced, its error in words), the largest share first. What no group covers is
    under "other kernels"."""
    shares: dict[str, float] = {}
    whole = float(cost.price.cycles) or 1.0
    for kernel, price in cost.by_kernel().items():
        group = next((group for names, group in KERNELS if kernel.startswith(names)), "other kernels")
        shares[group] = shares.get(group, 0.0) + float(price.cycles) / whole
    return {
        group: (share, error_of(group) if group != "other kernels" else "no published point to hold it against")
        for group, share in sorted(shares.items(), key=lambda item: -item[1])
    }


def errors_text(errors: Mapping[str, tuple[float, str]]) -> str:
    """Of whole programs, where training steps of transformers are all that was published, and of `kernel_errors` those that count: errors
    of parts say little of a whole."""
    parts = [f"{group} ({share:.0%} of the time) {text}" for group, (share, text) in errors.items() if share >= WORTH_NAMING]
    return f"whole training steps: {error_of('whole programs')}; parts: {'; '.join(parts)}"
