"""Weights that are kept sparse while they are trained: masks, when they change, and an optimiser that knows of them."""

from .groups import Group, densified, gmp, rigl, set_, static
from .schedules import Schedule, constant, cosine, cubic, exponential, linear, periodic, power
from .structures import NM, Block, Unstructured
from .transform import SparseState, masked, masks_of, sparsify, sparsity_of

__all__ = [
    "NM",
    "Block",
    "Group",
    "Schedule",
    "SparseState",
    "Unstructured",
    "constant",
    "cosine",
    "cubic",
    "densified",
    "exponential",
    "gmp",
    "linear",
    "masked",
    "masks_of",
    "periodic",
    "power",
    "rigl",
    "set_",
    "sparsify",
    "sparsity_of",
    "static",
]
