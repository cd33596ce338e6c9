"""One short rule a primitive: which layouts it needs, and what runs on the blocks. Importing this package registers them all."""

from wsejax.compiler.rules import attention, control, index, local, place, product, reduction, shape, users, window

__all__ = ["attention", "control", "index", "local", "place", "product", "reduction", "shape", "users", "window"]
