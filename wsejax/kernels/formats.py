"""Floating-point formats of up to 16 bits: rounding to them, and their codes.

Values of a format are held in float32, which contains them all. Rounding is integer arithmetic on float32's bits, since XLA:CPU takes
subnormal operands for zero, and `lax.reduce_precision` flushes the subnormals of the format.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32, Key, UInt16, UInt32

_SIGN, _INFINITY, _MANTISSA = 0x80000000, 0x7F800000, 23  # of float32


@dataclasses.dataclass(frozen=True)
class Format:
    """A binary format laid out as IEEE 754 has it: a sign, `exponent_bits` with a bias of 2^(exponent_bits - 1) - 1, `mantissa_bits`. The
    highest exponent is that of infinity and NaN, the lowest that of zero and subnormal numbers.

    subnormals: without them, what rounds to less than the smallest normal number becomes a zero of its sign.
    saturates: what is too large (infinity included) becomes the largest finite number; else infinity, as IEEE 754 rounds.

    Raises:
      ValueError: more than 16 bits, or more exponent bits than float32 has.
    """

    exponent_bits: int
    mantissa_bits: int
    subnormals: bool = True
    saturates: bool = False

    def __post_init__(self) -> None:
        if not (2 <= self.exponent_bits <= 8 and self.mantissa_bits >= 1 and self.bits <= 16):
            raise ValueError(
                f"exponent_bits={self.exponent_bits}, mantissa_bits={self.mantissa_bits}: give 2 to 8 bits of exponent and at least 1 of "
                "mantissa, with the sign at most 16 together"
            )

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def bias(self) -> int:
        return 2 ** (self.exponent_bits - 1) - 1

    @property
    def largest(self) -> float:
        """The largest finite value."""
        return (2.0 - 2.0**-self.mantissa_bits) * 2.0**self.bias

    @property
    def smallest_normal(self) -> float:
        return 2.0 ** (1 - self.bias)

    @property
    def smallest(self) -> float:
        """The smallest value above 0."""
        return self.smallest_normal * (2.0**-self.mantissa_bits if self.subnormals else 1.0)


FLOAT16 = Format(5, 10)
BFLOAT16 = Format(8, 7)
CB16 = Format(6, 9)
"""Cerebras' own 16-bit format, cbfloat16.

Public (docs.cerebras.net, "Data formats", release 1.6.1): 6 bits of exponent and 9 of explicit mantissa; that it has denormals, and that
they are rarer than float16's. The bias of 31, and a highest exponent that is kept for infinity and NaN, are read off the largest loss
scale of its `GradScaler` (cerebras.pytorch.amp): 2^31 with cbfloat16, and 2^15 with float16, the power of two of each format's largest
number. That overflow gives infinity and does not saturate is our choice: that scaler finds overflow by a norm that is not finite.
"""


@jax.custom_jvp
def _straight_through(x, rounded):
    """`rounded`, with the derivative of `x`."""
    return rounded


@_straight_through.defjvp
def _(primals, tangents):
    return primals[1], tangents[0]


def round_to(x: Float32[Array, "*shape"], format: Format, key: Key[Array, ""] | None = None) -> Float32[Array, "*shape"]:
    """The nearest value of a format, of two equally near ones that with an even mantissa. Its derivative is taken for that of the identity.

    NaN stays NaN (a quiet one), zeros keep their sign. Exact for every float32, subnormal ones included.

    key: round up or down at random instead, with a mean that is `x` (to 2^-32 of the step between two values). What is larger
    than the largest number overflows as before.

    Raises:
      TypeError: x is not float32.
    """
    x = jnp.asarray(x)
    if x.dtype != jnp.float32:
        raise TypeError(f"x is {x.dtype}: give float32, which holds the values of any format here")
    raw = lax.bitcast_convert_type(x, jnp.uint32)
    random = None if key is None else jax.random.bits(key, x.shape, jnp.uint32)
    return _straight_through(x, lax.bitcast_convert_type(_rounded(raw, format, random), jnp.float32))


@functools.partial(jax.jit, static_argnames="format")
def _rounded(raw: UInt32[Array, "*shape"], format: Format, random: UInt32[Array, "*shape"] | None) -> UInt32[Array, "*shape"]:
    """Bits of float32 to bits of float32."""
    u32 = jnp.uint32
    sign, size = raw & u32(_SIGN), raw & u32(_SIGN - 1)
    short = u32(_MANTISSA - format.mantissa_bits)
    # Adding to the bits carries into the exponent, which is what rounding up to a power of two asks for.
    bits = _cut(size, short, random) << short
    if format.exponent_bits < 8:  # with 8, subnormal numbers are those of float32, which their bits count just the same
        exponent, lowest = size >> _MANTISSA, u32(127 + 1 - format.bias)
        whole = (size & u32((1 << _MANTISSA) - 1)) | jnp.where(exponent > 0, u32(1 << _MANTISSA), u32(0))
        below = lowest - jnp.clip(exponent, u32(1), lowest)
        room = jnp.minimum(below, u32(31) - short)  # further down it can only be rounded to 0, or up by a tiny chance
        steps = _cut(whole >> jnp.minimum(below - room, u32(31)), short + room, random)  # of the smallest subnormal number
        step = 2.0 ** (1 - format.bias - format.mantissa_bits)
        tiny = lax.bitcast_convert_type(steps.astype(jnp.float32) * jnp.float32(step), u32)
        bits = jnp.where(exponent < lowest, tiny, bits)
    if not format.subnormals:
        bits = jnp.where(bits < u32((127 + 1 - format.bias) << _MANTISSA), u32(0), bits)
    highest = u32(((127 + format.bias) << _MANTISSA) | (((1 << format.mantissa_bits) - 1) << (_MANTISSA - format.mantissa_bits)))
    bits = jnp.where(bits > highest, highest if format.saturates else u32(_INFINITY), bits)
    nan = u32(_INFINITY | 1 << (_MANTISSA - 1))
    return sign | jnp.where(size > u32(_INFINITY), nan, bits)


def _cut(x, by, random):
    """x / 2^by, `by` from 1 to 31: rounded to the nearest, a tie to even; or up with the probability of what is cut off."""
    low, one = x & ((jnp.uint32(1) << by) - 1), jnp.uint32(1)
    high = x >> by
    if random is not None:
        return high + (low > random >> (32 - by)).astype(jnp.uint32)
    half = one << (by - one)
    return high + ((low > half) | ((low == half) & (high & one == one))).astype(jnp.uint32)


def encode(x: Float32[Array, "*shape"], format: Format) -> UInt16[Array, "*shape"]:
    """Codes of the nearest values of a format, in the lowest `format.bits` bits: sign, exponent, mantissa. NaN gets the quiet NaN's."""
    raw = lax.bitcast_convert_type(round_to(x, format), jnp.uint32)
    sign, size = raw >> 31, raw & jnp.uint32(_SIGN - 1)
    short = _MANTISSA - format.mantissa_bits
    top = jnp.uint32(((1 << format.exponent_bits) - 1) << format.mantissa_bits)
    code = (size >> short) - jnp.uint32((127 - format.bias) << format.mantissa_bits)
    if format.exponent_bits < 8:
        exponent, lowest = size >> _MANTISSA, jnp.uint32(127 + 1 - format.bias)
        # nothing is lost here: a rounded number below the smallest normal one is a multiple of the step
        whole = (size & jnp.uint32((1 << _MANTISSA) - 1)) | jnp.uint32(1 << _MANTISSA)
        tiny = jnp.where(size == 0, jnp.uint32(0), whole >> jnp.minimum(short + lowest - jnp.minimum(exponent, lowest), jnp.uint32(31)))
        code = jnp.where(exponent < lowest, tiny, code)
    code = jnp.where(size == jnp.uint32(_INFINITY), top, code)
    code = jnp.where(size > jnp.uint32(_INFINITY), top | jnp.uint32(1 << (format.mantissa_bits - 1)), code)
    return (code | sign << (format.bits - 1)).astype(jnp.uint16)


def decode(code: UInt16[Array, "*shape"], format: Format) -> Float32[Array, "*shape"]:
    """The value of each code: `encode` undone, but for the signs of NaNs and what is in their mantissas. Higher bits are passed over; a
    format without subnormal numbers reads zeros of their sign for them."""
    wide = code.astype(jnp.uint32)
    sign, size = (wide >> (format.bits - 1)) << 31, wide & jnp.uint32((1 << (format.bits - 1)) - 1)
    exponent = size >> format.mantissa_bits
    short = _MANTISSA - format.mantissa_bits
    bits = (size << short) + jnp.uint32((127 - format.bias) << _MANTISSA)
    if format.exponent_bits < 8:
        step = jnp.float32(2.0 ** (1 - format.bias - format.mantissa_bits))
        tiny = lax.bitcast_convert_type(size.astype(jnp.float32) * step, jnp.uint32)
        bits = jnp.where(exponent == 0, tiny, bits)
    if not format.subnormals:
        bits = jnp.where(exponent == 0, jnp.uint32(0), bits)
    top = exponent == jnp.uint32((1 << format.exponent_bits) - 1)
    mantissa = (size & jnp.uint32((1 << format.mantissa_bits) - 1)) << short
    bits = jnp.where(top, jnp.uint32(_INFINITY) | mantissa, bits)
    return lax.bitcast_convert_type(sign | bits, jnp.float32)
