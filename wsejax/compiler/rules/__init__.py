"""One short rule a primitive: which layouts it needs, and what runs on the blocks. Importing this package registers them all."""

from wsejax.compiler.rules import control, index, local, product, reduction, shape, users, window

__all__ = ["control", "index", "local", "product", "reduction", "shape", "users", "window"]
