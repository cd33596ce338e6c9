"""Operations of `random_programs.py` that hold a chain of their own: loops, branches, calls, gradients."""

from __future__ import annotations

import math

from tests.compiler.random_programs import FLOATS, Chain, Skip, Val, eps, op

any_value = lambda v: True


# ---- loops and branches ----------------------------------------------------------------------------------------------
def carried(c: Chain, test=any_value) -> tuple[Val, Val]:
    """(value to start from, the parameter that stands for it): bounded by what the loop keeps, inexact where it is a float."""
    v = c.pick(lambda v: not v.wild and v.size > 0 and test(v))
    big = max(v.bound, 2.0)
    return v, Val(c.name("c"), v.shape, v.dtype, False, big, max(v.err, eps(v.dtype) * big))


def kept(chain: Chain, c: Val) -> tuple[str, float]:
    """(text of the carry's next value, its error), made of the newest value of a loop's body."""
    v = chain.last(lambda v: not v.wild and (v.exact or v.floating))
    text, bound, err = chain.fitted(v, c.shape, c.dtype)
    if c.dtype in FLOATS and bound > c.bound:
        return f"({text}) * {2.0 ** -math.ceil(math.log2(bound / c.bound))}", err + eps(c.dtype) * bound
    return text, err + eps(c.dtype) * c.bound * (c.dtype in FLOATS)


def looped(err: float, start: Val, trips: int) -> tuple[float, float]:
    return max(start.bound, 2.0), max(err, start.err) * 3.0**trips if start.floating else 0.0


@op(4)
def scan(c: Chain):
    start, carry = carried(c, lambda v: not (c.smooth and not v.floating))
    xs = c.pick(lambda v: v.ndim > 0 and not v.wild and 0 < v.shape[0] <= 6) if c.flip() else None
    trips = xs.shape[0] if xs else c.int(1, 4)
    x = Val(c.name("s"), xs.shape[1:], xs.dtype, False, xs.bound, xs.err) if xs else None
    chain = c.body([carry, *([x] if x else [])], 3)
    text, err = kept(chain, carry)
    y = chain.last(lambda v: not v.wild) if c.flip() else carry
    f, before = c.function([carry, x or "_"], chain, f"{text}, {y}")
    call = f"lax.scan({f}, {start}, {xs}, length={trips}, reverse={c.flip()})"
    if c.flip():
        return c.add(f"{call}[0]", *looped(err, start, trips), before=before)
    return c.add(f"{call}[1]", max(y.bound, 2.0), max(y.err, looped(err, start, trips)[1]) * 3.0**trips if y.floating else 0, before=before)


@op(3)
def fori(c: Chain):
    if c.smooth:
        raise Skip
    start, carry = carried(c)
    i = Val(c.name("i"), (), "int32", True)
    chain = c.body([i, carry], 3)
    text, err = kept(chain, carry)
    f, before = c.function([i, carry], chain, text)
    trips = c.int(0, 3)
    end = c.choose([str(trips), c.scalar(trips + 1)])
    return c.add(f"lax.fori_loop(0, {end}, {f}, {start})", *looped(err, start, trips), before=before)


@op(2)
def while_(c: Chain):
    """As long as a counter is small, or an exact sum of what is carried."""
    if c.smooth:
        raise Skip
    start, carry = carried(c)
    n = Val(c.name("n"), (), "int32")
    chain = c.body([n, carry], 2)
    text, err = kept(chain, carry)
    f, before = c.function([n, carry], chain, f"{n} + 1, {text}")
    test = f"(t[0] < {c.scalar(4)})" + (" & (jnp.sum(t[1]) % 5 != 3)" if start.integer and c.flip() else "")
    before = [*before, f"{f}s = lax.while_loop(lambda t: {test}, lambda t: {f}(*t), (jnp.int32(0), {start}))"]
    return c.add(f"{f}s[1]", *looped(err, start, 3), before=before)


@op(3)
def cond(c: Chain):
    v = c.pick(lambda v: not v.wild and v.size > 0)
    branches, before, sizes = [], [], []
    for _ in range(c.choose([2, 2, 3])):
        p = Val(c.name("p"), v.shape, v.dtype, False, v.bound, v.err)
        chain = c.body([p], 2)
        text, bound, err = chain.fitted(chain.last(lambda v: not v.wild and (v.exact or v.floating)), v.shape, v.dtype)
        name, lines = c.function([p], chain, text)
        branches.append(name)
        before += lines
        sizes.append((bound, err))
    which = c.scalar(len(branches))
    names = ", ".join(branches)
    text = f"lax.cond({which} == 1, {names}, {v})" if len(branches) == 2 else f"lax.switch({which}, [{names}], {v})"
    return c.add(text, max(b for b, _ in sizes), max(e for _, e in sizes), before=before)


@op(3)
def call(c: Chain):
    """A chain under jit, checkpoint or vmap."""
    v = c.pick(lambda v: not v.wild)
    how = c.choose(["jax.jit", "jax.checkpoint", "jax.vmap", "jax.vmap"])
    d = c.dim(v) if how == "jax.vmap" and v.ndim and v.size else None
    how = how if d is not None or how != "jax.vmap" else "jax.jit"
    shape = v.shape if d is None else v.shape[:d] + v.shape[d + 1 :]
    p = Val(c.name("p"), shape, v.dtype, False, v.bound, v.err)
    chain = c.body([p], 3)
    y = chain.last()
    f, before = c.function([p], chain, str(y))
    text = f"{how}({f})({v})" if d is None else f"jax.vmap({f}, in_axes={d})({v})"
    return c.add(text, y.bound, y.err, y.wild, before=before)


@op(6)
def gradient(c: Chain):
    """Of the sum of squares of a chain's float, in units of its largest element; sometimes with remat."""
    if c.smooth:
        raise Skip
    v = c.tame(lambda v: v.size > 0 and v.ndim > 0)
    p = Val(c.name("p"), v.shape, v.dtype, False, v.bound, v.err)
    chain = c.body([p], 5, smooth=True)
    y = chain.last(lambda v: v.floating and not v.wild)
    text, _, _ = chain.fitted(y, y.shape, "float32")
    f, before = c.function([p], chain, f"jnp.sum(jnp.square({text}))")
    remat = c.choose(["{}", "jax.checkpoint({})"]).format(f)
    worst = max(eps(d) for d in FLOATS if d in "\n".join(before) or d in {v.dtype, y.dtype, *(w.dtype for w in chain.values)})
    return c.add(f"{f}g / (1 + jnp.max(jnp.abs({f}g)))", 1, 64 * worst, before=[*before, f"{f}g = jax.grad({remat})({v})"])
