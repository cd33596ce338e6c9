"""How far off modelled times are, in the words that stand beside them: errors against published measurements, of the groups that come
nearest, and what no measurement covers."""

from __future__ import annotations

from collections.abc import Mapping

from ..cost import Cost
from ..cost.errors import model_error

# Kernels by how their name begins, with the group of published points whose model they share; the first that matches.
KERNELS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("gemm", "dot_general", "conv"), "GEMM, local"),
    (("reduce_", "argmax", "argmin", "cum"), "Reduction"),
    (("halo", "shift", "slice", "pad", "concatenate"), "Link"),
    (("relayout", "take_rows", "add_rows", "gather", "scatter"), "Multicast"),
    (("exp", "log", "tanh", "logistic", "sin", "cos", "erf", "pow", "sqrt", "rsqrt", "div"), "PE functions"),
    (("add", "sub", "mul", "neg", "max", "min", "select", "square", "convert", "integer_pow"), "PE instructions"),
)
# What was measured, which is less than what the kernels do.
WORDS = {
    "GEMM, local": "products inside PEs (one PE in the simulator)",
    "Reduction": "reductions over the grid",
    "Link": "shifts over links",
    "Multicast": "broadcasts along lines of PEs",
    "PE functions": "exp, log and the like in a PE",
    "PE instructions": "element-wise instructions of a PE",
}
MOVING = "moving operands of products"  # over a grid of PEs: nobody has published one
OTHER = "other kernels"
UNMEASURED = "no published point to hold it against"
WORTH_NAMING = 0.01  # of the cycles
TWO_MODELS = (
    "priced product by product, kernels alone; `wsejax compare` prices training steps by another model, from dimensions, fitted to whole "
    "runs with what weight streaming adds to each layer and step, and usually says more"
)


def error_of(group: str) -> str:
    """In words; also of a group that no published point counts for."""
    try:
        return str(model_error(group))
    except ValueError:
        return UNMEASURED


def kernel_errors(cost: Cost) -> dict[str, tuple[float, str]]:
    """What was measured -> (share of the modelled cycles that it stands for, the model's error in words), the largest share first.

    Of a product only the time in which PEs compute was ever measured; that in which they wait for operands stands by itself. What no group
    covers is under "other kernels".
    """
    shares: dict[str, float] = {}
    whole = float(cost.price.cycles) or 1.0
    errors = {WORDS[group]: error_of(group) for _, group in KERNELS}
    for kernel, price in cost.by_kernel().items():
        group = next((group for names, group in KERNELS if kernel.startswith(names)), None)
        parts = {OTHER if group is None else WORDS[group]: float(price.cycles)}
        if group == "GEMM, local":
            inside = min(float(price.compute_cycles), float(price.cycles))
            parts = {WORDS[group]: inside, MOVING: float(price.cycles) - inside}
        for name, cycles in parts.items():
            shares[name] = shares.get(name, 0.0) + cycles / whole
    return {name: (share, errors.get(name, UNMEASURED)) for name, share in sorted(shares.items(), key=lambda item: -item[1])}


def errors_text(errors: Mapping[str, tuple[float, str]], trains: bool, group: str = "whole programs") -> tuple[str, ...]:
    """Lines to stand below a modelled time: of whole training steps, if the program is one (of transformers, since no others were
    published; `group` is `Cost.error_group`), and of its parts that count. Errors of parts say little of a whole."""
    whole = (f"error: whole training steps of transformers, {error_of(group)}",) if trains else ()
    parts = [f"{name} ({share:.0%} of the time) {text}" for name, (share, text) in errors.items() if share >= WORTH_NAMING]
    return (*whole, f"error of parts: {'; '.join(parts)}") if parts else whole
