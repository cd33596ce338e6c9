"""Operations of `random_programs.py` on the elements, the shape and the order of an array. Each appends a statement, or raises `Skip`."""

from __future__ import annotations

import math

from tests.compiler.random_programs import FLOATS, Chain, Skip, Val, filled, op, ranked, same

# ---- element by element ----------------------------------------------------------------------------------------------
UNARY = {  # text: (bound, Lipschitz constant) as functions of the operand's bound
    "jnp.tanh({})": (lambda b: 1, lambda b: 1),
    "jnp.sin({})": (lambda b: 1, lambda b: 1),
    "jnp.cos({})": (lambda b: 1, lambda b: 1),
    "jnp.exp({} * 0.25)": (lambda b: math.exp(b / 4), lambda b: math.exp(b / 4)),
    "jnp.expm1({} * 0.25)": (lambda b: math.exp(b / 4), lambda b: math.exp(b / 4)),
    "jax.nn.sigmoid({})": (lambda b: 1, lambda b: 1),
    "jax.nn.silu({})": (lambda b: b, lambda b: 2),
    "jax.nn.gelu({})": (lambda b: b, lambda b: 2),
    "lax.rsqrt(1 + {0} * {0})": (lambda b: 1, lambda b: b + 1),
    "jnp.sqrt(1 + jnp.square({}))": (lambda b: b + 1, lambda b: 2 * b + 1),
    "jnp.log1p(jnp.square({}))": (lambda b: b + 1, lambda b: 2 * b + 1),
    "lax.integer_pow({}, 3)": (lambda b: b**3, lambda b: 3 * b**2),
    "lax.erf({})": (lambda b: 1, lambda b: 2),
    "jnp.arctan({})": (lambda b: 2, lambda b: 1),
    "({} * 0.5 - 1)": (lambda b: b + 1, lambda b: 1),
}
KINKED = ("jnp.abs({})", "jax.nn.relu({})", "-{}", "jnp.clip({}, -0.75, 1)", "jnp.minimum({}, 1)", "jnp.nan_to_num({})",
          "lax.clamp(jnp.asarray(-1, {0}.dtype), {0}, jnp.asarray(1, {0}.dtype))")  # fmt: skip
STEPPED = ("jnp.floor({})", "jnp.sign({})", "jnp.round({})", "({} > 0)", "jnp.isnan({})", "jnp.isfinite({})", "({0} == {0})")
OF_INTEGERS = ("-{}", "~{}", "jnp.abs({})", "({} * 3)", "({} << 1)", "({} >> 1)", "({} % 5)", "({} // 3)", "lax.population_count({})",
               "lax.clz({})", "jnp.sign({})", "({} > 2)", "jnp.square({})", "jnp.clip({}, 1, 4)")  # fmt: skip


@op(6)
def unary(c: Chain):
    v = c.pick()
    if v.dtype == "bool":
        return c.add(f"~{v}")
    if v.integer:
        return c.add(c.choose(OF_INTEGERS).format(v))
    if c.int(0, 3) == 0 and c.kinky(v):
        return same(c, v, c.choose(KINKED).format(v))
    if c.int(0, 3) == 0 and v.exact and not c.smooth:
        return same(c, v, c.choose(STEPPED).format(v))
    if v.wild:
        raise Skip
    text = c.choose(list(UNARY))
    bound, slope = UNARY[text]
    return c.rounded(text.format(v), bound(v.bound), slope(v.bound) * v.err, v)


def partner(c: Chain, v: Val) -> str:
    """A second operand that broadcasts against `v`, or is stretched to it with `v` stretched as well."""
    return c.operand(v.shape, v.dtype, stretched=True)


@op(8)
def binary(c: Chain):
    v = c.pick()
    w = partner(c, v)
    if c.flip():
        v, w = w, v
    if v.dtype == "bool":
        return c.add(f"{v} {c.choose('&|^')} {w}")
    if v.integer:
        text = c.choose(["{} + {}", "{} - {}", "{} * {}", "jnp.maximum({}, {})", "jnp.minimum({}, {})", "{} & {}", "{} | {}", "{} ^ {}",
                         "{} // (abs({}) % 3 + 1)", "{} % (abs({}) % 5 + 1)", "{} < {}", "{} == {}", "{} >> (abs({}) % 4)"])  # fmt: skip
        return c.add(text.format(v, w))
    big, err, wild = max(v.bound, w.bound), v.err + w.err, v.wild or w.wild
    if c.int(0, 3) == 0 and c.kinky(v) and c.kinky(w):
        return c.add(f"jnp.{c.choose(['maximum', 'minimum'])}({v}, {w})", big, err, wild)
    if c.int(0, 3) == 0 and v.exact and w.exact:
        return c.add(f"{v} {c.choose(['<', '>=', '==', '!='])} {w}")
    text = c.choose(["{} + {}", "{} - {}", "{} * {}", "{} / (1.5 + jnp.square({}))", "jnp.hypot({}, 1 + jnp.square({}))"])
    if "hypot" in text and wild:
        raise Skip
    return c.rounded(text.format(v, w), big**2 + big + 1, (big + 1) ** 2 * err, v, wild=wild)


@op(3)
def where(c: Chain):
    v = c.pick()
    w, mask = partner(c, v), c.operand(v.shape, "bool", stretched=True)
    text = c.choose([f"jnp.where({mask}, {v}, {w})", f"jnp.where({mask}, {w}, {v})", f"jnp.where({mask}, {v}, 0)"])
    return c.add(text, max(v.bound, w.bound), max(v.err, w.err), v.wild or w.wild)


@op(3)
def cast(c: Chain):
    v = c.pick(lambda v: not v.wild and (v.exact or v.floating))
    dtype = c.choose([d for d in (FLOATS if not v.exact or c.smooth else (*FLOATS, "int32", "int8", "uint8", "bool")) if d != v.dtype])
    return c.add(c.cast_text(v, dtype), *c.cast_size(v, dtype))


# ---- shapes ----------------------------------------------------------------------------------------------------------
@op(4)
def transpose(c: Chain):
    v = c.pick(lambda v: v.ndim > 1)
    return same(c, v, f"jnp.transpose({v}, {c.perm(v.ndim)})")


@op(5)
def reshape(c: Chain):
    v = c.pick(filled)
    sizes = list(v.shape)
    for _ in range(c.int(1, 3)):
        i = c.int(0, len(sizes) - 1) if sizes else 0
        if c.flip() and i + 1 < len(sizes):
            sizes[i : i + 2] = [sizes[i] * sizes[i + 1]]
        elif sizes:
            factor = c.choose([f for f in range(1, sizes[i] + 1) if sizes[i] % f == 0])
            sizes[i : i + 1] = [factor, sizes[i] // factor]
    if c.int(0, 5) == 5:
        sizes = sorted(sizes)
    return same(c, v, f"{v}.reshape({tuple(sizes[:5])})") if len(sizes) <= 5 else None


@op(2)
def stretch(c: Chain):
    v = c.pick(lambda v: v.ndim < 4)
    shape = [c.choose([2, 3, 4]) if n == 1 and c.flip() else n for n in v.shape]
    lead = [c.choose([1, 2, 3, 4]) for _ in range(c.int(0, 2))]
    text = c.choose(
        [
            f"jnp.broadcast_to({v}, {(*lead, *shape)})",
            f"lax.broadcast_in_dim({v}, {(*shape, 3)}, {tuple(range(v.ndim))})",
            f"jnp.expand_dims({v}, {c.int(0, v.ndim)})",
        ]
    )
    return same(c, v, text)


@op(2)
def squeeze(c: Chain):
    v = c.pick(lambda v: 1 in v.shape)
    return same(c, v, f"jnp.squeeze({v}, {c.choose([d for d in range(v.ndim) if v.shape[d] == 1])})")


def span(c: Chain, n: int) -> tuple[int, int, int]:
    lo = c.int(0, n - 1)
    return lo, c.int(lo + 1, n), c.choose([1, 1, 2, 3])


@op(4)
def slice_(c: Chain):
    v = c.pick(filled)
    parts = []
    for n in v.shape:
        lo, hi, step = span(c, n)
        parts.append(c.choose([":", f"{lo}:{hi}:{step}", f"{lo}:{hi}:{step}", "::-1", f"{lo}:{hi}", f"{lo}", "None, :"]))
    return same(c, v, f"{v}[{', '.join(parts)}]")


@op(3)
def pad(c: Chain):
    v = c.pick(filled)
    if c.int(0, 2) == 0:
        width = tuple((c.int(0, 2), c.int(0, 2)) if n > 2 else (0, 0) for n in v.shape)
        return same(c, v, f"jnp.pad({v}, {width}, mode={c.choose(['edge', 'reflect', 'wrap', 'symmetric', 'constant'])!r})")
    config = tuple((c.int(-1, 2) if n > 2 else 1, c.int(-1, 3) if n > 2 else 0, c.choose([0, 0, 1])) for n in v.shape)
    fill = "False" if v.dtype == "bool" else "1"
    return same(c, v, f"lax.pad({v}, jnp.asarray({fill}, {v}.dtype), {config})")


@op(3)
def concatenate(c: Chain):
    v = c.pick(ranked)
    d = c.dim(v)
    if c.int(0, 3) == 0:
        w = c.operand(v.shape, v.dtype)
        return c.add(f"jnp.stack([{v}, {w}], {c.int(0, v.ndim)})", max(v.bound, w.bound), max(v.err, w.err), v.wild)
    w = c.operand((*v.shape[:d], c.choose([1, 2, 3, 5, v.shape[d]]), *v.shape[d + 1 :]), v.dtype)
    parts = c.choose([f"{v}, {w}", f"{w}, {v}", f"{v}, {w}, {v}"])
    return c.add(f"jnp.concatenate([{parts}], {d})", max(v.bound, w.bound), max(v.err, w.err), v.wild or w.wild)


@op(4)
def move(c: Chain):
    v = c.pick(filled)
    d = c.dim(v)
    n = v.shape[d]
    texts = [f"jnp.flip({v}, {d})", f"jnp.flip({v})", f"jnp.roll({v}, {c.int(-3, 3)}, {d})", f"jnp.roll({v}, {c.scalar(4)}, {d})",
             f"jnp.repeat({v}, {c.int(1, 3)}, {d})", f"jnp.tile({v}, {tuple(c.int(1, 2) for _ in v.shape)})", f"jnp.swapaxes({v}, 0, {d})",
             f"jnp.split({v}, [{c.int(0, n)}], {d})[{c.int(0, 1)}]", f"jnp.triu({v})" if v.ndim > 1 else f"jnp.diag({v})",
             f"jnp.where(jnp.arange({n}) < {c.scalar(n + 1)}, jnp.moveaxis({v}, {d}, -1), 0)"]  # fmt: skip
    return same(c, v, c.choose(texts))


# ---- reductions and sorting ------------------------------------------------------------------------------------------
def axes_of(c: Chain, v: Val) -> tuple[int, ...]:
    return tuple(c.some(range(v.ndim)))


@op(7)
def reduction(c: Chain):
    v = c.pick(filled)
    axes, keep = axes_of(c, v), c.flip()
    n = math.prod(v.shape[d] for d in axes)
    of = lambda name, x=str(v): f"{name}({x}, axis={axes}, keepdims={keep})"
    if v.dtype == "bool":
        return c.add(of(c.choose(["jnp.any", "jnp.all", "jnp.sum", "jnp.max"])))
    if v.integer:
        return c.add(of(c.choose(["jnp.sum", "jnp.max", "jnp.min", "jnp.prod", "jnp.any", "jnp.all"])))
    if c.int(0, 2) == 0 and c.kinky(v):
        return same(c, v, of(c.choose(["jnp.max", "jnp.min"])))
    if c.int(0, 2) > 0:
        name = c.choose(["jnp.sum", "jnp.mean"])
        return c.rounded(of(name), v.bound * n, v.err * n, v, 4 + n**0.5, wild=v.wild)
    if v.wild:
        raise Skip
    if c.flip() or n > 64:
        return c.rounded(of("jax.nn.logsumexp" if c.kinky(v) else "jnp.mean"), v.bound + math.log(n), v.err, v, 8)
    if c.flip():
        return c.rounded(of("jnp.var"), v.bound**2, 4 * v.bound * v.err, v, 16)
    factor = f"1 + {v} * {0.5 / v.bound / n:.4g}"
    return c.rounded(of("jnp.prod", factor), 2, 2 * v.err / v.bound, v, 4 + n)


@op(2)
def argument_of(c: Chain):
    v = c.pick(lambda v: v.exact and v.size > 0 and v.ndim > 0 and v.dtype != "bool")
    name = c.choose(["jnp.argmax", "jnp.argmin"])
    return c.add(c.choose([f"{name}({v}, {c.dim(v)})", f"{name}({v})", f"{name}({v}, {c.dim(v)}, keepdims=True)"]))


@op(4)
def cumulative(c: Chain):
    v = c.pick(filled)
    d, back = c.dim(v), c.flip()
    n = v.shape[d]
    of = lambda name, x=str(v): f"lax.{name}({x}, {d}, reverse={back})"
    if v.dtype == "bool":
        return c.add(of("cumsum", f"{v}.astype('int32')"))
    if v.integer:
        return c.add(of(c.choose(["cumsum", "cummax", "cummin", "cumprod"])))
    if c.flip() and c.kinky(v):
        return same(c, v, of(c.choose(["cummax", "cummin"])))
    if v.wild or c.int(0, 2) > 0:
        return c.rounded(of("cumsum"), v.bound * n, v.err * n, v, 4 + n, wild=v.wild)
    if c.flip() and c.kinky(v):
        return c.rounded(of("cumlogsumexp"), v.bound + math.log(n), v.err, v, 8 + n)
    return c.rounded(of("cumprod", f"1 + {v} * {0.5 / v.bound / n:.4g}"), 2, 2 * v.err / v.bound, v, 4 + n)


@op(4)
def sort(c: Chain):
    v = c.pick(lambda v: filled(v) and (v.exact or not c.smooth))
    d = c.dim(v)
    k = c.int(1, v.shape[-1])
    texts = [f"jnp.sort({v}, {d})", f"jnp.sort({v}, {d}, descending=True)"]
    if v.dtype != "bool" and not v.wild:
        texts.append(f"lax.top_k({v}, {k})[0]")
    if v.exact:
        texts += [f"jnp.argsort({v}, {d})", f"jnp.argsort({v}, {d}, descending=True)"]
        if v.dtype != "bool" and not v.wild:
            texts.append(f"lax.top_k({v}, {k})[1]")
        w = c.operand(v.shape, c.choose(["float32", "int32"]))
        texts.append(f"lax.sort(({v}, {w}), dimension={d}, num_keys=1)[1]")
        if w.exact:
            texts.append(f"lax.sort(({v}, {w}, jnp.flip({v}, {d})), dimension={d}, num_keys=2)[{c.int(0, 2)}]")
        return c.add(c.choose(texts), max(v.bound, w.bound), w.err, v.wild or w.wild)
    return same(c, v, c.choose(texts))
