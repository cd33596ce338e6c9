"""Records of floats that are checked when they are made: machines, clusters, steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.core
import numpy as np


def check_fields(record: Any, plausible: Mapping[str, tuple[float, float]], jax_arrays: bool = False) -> None:
    """Holds each field to its plausible range; a lower end of 0 allows zero. Tracers pass, and arrays of JAX unless `jax_arrays` says
    otherwise: a gradient with respect to a record is a record, too.

    Raises:
      ValueError: a field that is not finite, is negative or zero, or lies so far out that its unit must be wrong.
    """
    for field, (low, high) in plausible.items():
        value = getattr(record, field)
        if jax_arrays and isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer):
            value = np.asarray(value)
        if isinstance(value, bool | str | bytes | complex | list | tuple | dict) or value is None:
            raise ValueError(f"{field}={value!r}: must be a number")
        if not isinstance(value, int | float | np.number | np.ndarray):
            continue
        least, most = np.min(value), np.max(value)
        if not (np.all(np.isfinite(value)) and (least > 0 or (least == 0 and low == 0))):
            raise ValueError(f"{field}={value!r}: must be finite and {'not negative' if low == 0 else 'positive'}")
        if not (low <= least and most <= high):
            raise ValueError(
                f"{field}={value!r}: outside {low:g} to {high:g}, what there is; is it in the unit that its name says? convert it"
            )


def replaced(record: Any, changes: Mapping[str, Any]) -> Any:
    """`dataclasses.replace` with an error that lists the fields there are.

    Raises:
      ValueError: a name that is no field.
    """
    names = [f.name for f in dataclasses.fields(record)]
    if unknown := [name for name in changes if name not in names]:
        kind = type(record).__name__
        raise ValueError(f"{unknown[0]}={changes[unknown[0]]!r}: a {kind} has no such field; it has {', '.join(names)}")
    return dataclasses.replace(record, **changes)
