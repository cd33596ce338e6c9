"""How single operations add up, where it is not as the wafer does."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import jax

from wsejax.compiler.ir import ACCUMULATE
from wsejax.hardware.wafer import Accumulate, both_accumulators, checked_accumulate


def accumulating(accumulate: Accumulate) -> AbstractContextManager[Any]:
    """Inside `with accumulating("operand"):` products and sums add up so, and their gradients with them, whatever the wafer says.

    It is a `jax.named_scope`, which XLA passes over: outside `wse.jit` it does nothing. The innermost one counts.

    Raises:
      ValueError: an unknown word (see `Wafer`).
    """
    in_tile, on_line = both_accumulators(checked_accumulate(accumulate))
    return jax.named_scope(f"{ACCUMULATE}={in_tile},{on_line}")
