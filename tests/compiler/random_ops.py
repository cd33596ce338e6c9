"""The operations of `random_programs.py`: each appends a statement to a chain, or raises `Skip`."""

from __future__ import annotations

import math

from tests.compiler.random_programs import BOUND, FLOATS, Chain, Skip, Val, eps, op

any_value = lambda v: True
ranked = lambda v: v.ndim > 0
filled = lambda v: v.ndim > 0 and v.size > 0


def same(c: Chain, v: Val, text: str, **rest) -> Val:
    """A result that only moves or picks numbers of `v`."""
    return c.add(text, max(v.bound, 1.0), v.err, v.wild, **rest)


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
KINKED = ("jnp.abs({})", "jax.nn.relu({})", "-{}", "jnp.clip({}, -0.75, 1)", "lax.clamp(jnp.asarray(-1, {0}.dtype), {0}, jnp.asarray(1, {0}.dtype))",
          "jnp.minimum({}, 1)", "jnp.nan_to_num({})")  # fmt: skip
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


# ---- indexing --------------------------------------------------------------------------------------------------------
@op(5)
def take(c: Chain):
    v = c.pick(filled)
    d = c.dim(v)
    n = v.shape[d]
    shape = tuple(c.choose([1, 2, 3, 4, 6]) for _ in range(c.int(0, 2)))
    i, j = c.index(shape), c.index(shape)
    colons = ":, " * d
    texts = [f"jnp.take({v}, {i}, {d}, mode='wrap')", f"jnp.take({v}, {i}, {d}, mode='clip')",
             f"jnp.take({v}, {i}, {d}, mode='fill', fill_value=1)", f"{v}[{colons}{i}]", f"{v}[{colons}{i} % {n}]",
             f"{v}.at[{colons}{i}].get(mode='fill', fill_value=0)"]  # fmt: skip
    if v.ndim > 1:
        texts += [f"{v}[{i}, {j}]", f"{v}[{i} % 2, ..., {j} % 3]", f"{v}[..., {i}, {j}]"]
    if v.ndim > 2:
        texts += [f"{v}[{i}, :, {j}]", f"{v}[:, {i}, {j}]"]
    return same(c, v, c.choose(texts))


@op(2)
def take_along(c: Chain):
    v = c.pick(filled)
    d = c.dim(v)
    i = c.index((*v.shape[:d], c.choose([1, 2, v.shape[d]]), *v.shape[d + 1 :]), c.choose(["int32", "uint8"]))
    return same(c, v, f"jnp.take_along_axis({v}, {i} % {v.shape[d]}, {d})")


@op(5)
def update(c: Chain):
    v = c.pick(lambda v: filled(v) and not v.wild and v.dtype != "bool")
    d, m = c.dim(v), c.choose([1, 2, 3, 4, 8])
    n, colons = v.shape[d], ":, " * d
    i = c.index((m,), c.choose(["int32", "int32", "int8"]))
    w = c.operand((*v.shape[:d], m, *v.shape[d + 1 :]), v.dtype, stretched=True)
    texts = [f"{v}.at[{colons}{i}].add({w})", f"{v}.at[{colons}{i} % {n}].add({w})", f"{v}.at[{colons}1:].set(0)"]
    if c.kinky(v) and c.kinky(w):
        texts += [f"{v}.at[{colons}{i}].max({w})", f"{v}.at[{colons}{i}].min({w}, mode='drop')"]
    k = c.int(1, n)
    u = c.operand((*v.shape[:d], k, *v.shape[d + 1 :]), v.dtype, stretched=True)
    start, step = c.int(0, n - k), c.choose([1, -1])
    unique = f"(jnp.arange({k}) * {step} + {start + (k - 1 if step < 0 else 0)})"
    texts += [f"{v}.at[{colons}{unique}].set({u})", f"{v}.at[{colons}{start}:{start + k}].set({u})",
              f"{v}.at[{colons}{unique}].multiply({u})", f"{v}.at[{colons}{start}:{start + k}].add({u})"]  # fmt: skip
    if v.ndim > 1 and d == 0:
        texts.append(f"{v}.at[{i}, {c.index((m,))} % {v.shape[1]}].add(1)")
    text = c.choose(texts)
    if "set" in text or "max" in text or "min" in text:
        return c.add(text, max(v.bound, w.bound, u.bound, 1), max(v.err, w.err, u.err))
    big = max(v.bound, w.bound, u.bound, 1)
    return c.rounded(text, big * max(m + 1, big), (m + 1 + 2 * big) * max(v.err, w.err, u.err), v, 4 + m)


@op(4)
def dynamic(c: Chain):
    v = c.pick(filled)
    starts = ", ".join(c.choose(["0", c.scalar(n + 2)]) for n in v.shape)
    sizes = tuple(c.int(1, n) for n in v.shape)
    if c.flip():
        d = c.dim(v)
        return same(c, v, c.choose([f"lax.dynamic_slice({v}, ({starts},), {sizes})", f"lax.dynamic_index_in_dim({v}, {c.scalar(v.shape[d])}, {d})",
                                    f"lax.dynamic_slice_in_dim({v}, {c.scalar(v.shape[d])}, {sizes[d]}, {d})"]))  # fmt: skip
    w = c.operand(sizes, v.dtype)
    return c.add(f"lax.dynamic_update_slice({v}, {w}, ({starts},))", max(v.bound, w.bound), max(v.err, w.err), v.wild or w.wild)


@op(2)
def make(c: Chain):
    n, m = c.choose([3, 4, 6, 8]), c.choose([2, 5, 4])
    return c.add(c.choose([f"lax.broadcasted_iota('int32', ({n}, {m}), {c.int(0, 1)})", f"jnp.arange({n * m}, dtype='uint8').reshape({n}, {m})",
                           f"jnp.eye({n}, {m}, dtype=bool)", f"jnp.tri({n}, {m}, {c.int(-1, 1)}, dtype='int32')", f"jnp.arange({n})[::-1]",
                           f"(jnp.arange({n})[:, None] + jnp.arange({m})[None] * 2) % 3", f"jax.nn.one_hot({c.scalar(n)}, {n}, dtype='int32')"]))  # fmt: skip


@op(3)
def draw_random(c: Chain):
    shape = tuple(c.choose([1, 3, 4, 6, 8]) for _ in range(c.int(0, 3)))
    key = c.choose(["jax.random.key(0)", f"jax.random.fold_in(jax.random.key(1), {c.scalar(5)})", f"jax.random.key({c.scalar(9)})",
                    f"jax.random.split(jax.random.key(2), 3)[{c.scalar(3)}]"])  # fmt: skip
    dtype = c.choose(FLOATS)
    text = c.choose([f"jax.random.normal({key}, {shape}, {dtype!r})", f"jax.random.uniform({key}, {shape})", f"jax.random.randint({key}, {shape}, 0, 9)",
                     f"jax.random.bernoulli({key}, 0.5, {shape})", f"jax.random.bits({key}, {shape}, 'uint8')", f"jax.random.permutation({key}, 6)",
                     f"jax.vmap(lambda k: jax.random.uniform(k, {shape}))(jax.random.split({key}, 4))"])  # fmt: skip
    return c.add(text, 6, 0 if "normal" not in text else 64 * eps(dtype))


# ---- products --------------------------------------------------------------------------------------------------------
def product(c: Chain, v: Val, w: Val, terms: int, text: str):
    if not v.floating:
        return c.add(text)
    bound, err = terms * v.bound * w.bound, terms * (v.err * w.bound + w.err * v.bound)
    return c.rounded(text, bound, err, v, 4 + terms**0.5)


@op(9)
def einsum(c: Chain):
    """Each dimension of the first operand is a batch, contracted or kept; the second has kept ones of its own."""
    v = c.pick(lambda v: v.dtype != "bool" and not v.wild and 0 < v.ndim < 5)
    letters = "abcdef"[: v.ndim]
    roles = {x: c.choose(["contract", "keep", "keep", "batch"]) for x in letters}
    if all(r != "contract" for r in roles.values()) and c.int(0, 3) > 0:
        roles[c.choose(letters)] = "contract"
    size = dict(zip(letters, v.shape, strict=True))
    own = "uvw"[: c.int(0, 2)]
    size |= {x: c.choose([1, 2, 3, 4, 5, 6, 8]) for x in own}
    second = [x for x in letters if roles[x] != "keep"] + list(own)
    second = [second[i] for i in c.perm(len(second))]
    out = [x for x in letters if roles[x] != "contract"] + list(own)
    out = [out[i] for i in c.perm(len(out))] if c.flip() else out
    w = c.operand([size[x] for x in second], v.dtype)
    terms = math.prod(size[x] for x in letters if roles[x] == "contract")
    wide = ", preferred_element_type='float32'" if v.floating and c.flip() else ", preferred_element_type='int32'" if v.integer and c.flip() else ""
    first, other = (letters, v), ("".join(second), w)
    if c.flip():
        first, other = other, first
    return product(c, v, w, max(terms, 1), f"jnp.einsum('{first[0]},{other[0]}->{''.join(out)}', {first[1]}, {other[1]}{wide})")


@op(4)
def matmul(c: Chain):
    v = c.pick(lambda v: v.dtype != "bool" and not v.wild and v.ndim > 1)
    k, n = v.shape[-1], c.choose([1, 2, 3, 4, 6, 8])
    w = c.operand((k, n), v.dtype)
    return product(c, v, w, k, f"{v} @ {w}")


@op(2)
def with_itself(c: Chain):
    v = c.tame(lambda v: v.ndim > 0)
    return product(c, v, v, v.shape[-1], f"jnp.einsum('...i,...i->...', {v}, {v})" if c.flip() or v.ndim < 2 else f"{v} @ jnp.swapaxes({v}, -1, -2)")


# ---- normalisation ---------------------------------------------------------------------------------------------------
@op(3)
def normalise(c: Chain):
    v = c.tame(lambda v: filled(v) and c.kinky(v))
    d = c.dim(v)
    text = c.choose([f"jax.nn.softmax({v}, {d})", f"jax.nn.log_softmax({v}, {d})", f"jax.nn.standardize({v}, {d}, epsilon=0.1)"])
    return c.rounded(text, 2 * v.bound + 4, 16 * v.err, v, 16)


# ---- loops and branches ----------------------------------------------------------------------------------------------
def carried(c: Chain, test=any_value) -> tuple[Val, Val]:
    """(value to start from, the parameter that stands for it): bounded by what the loop keeps, inexact where it is a float."""
    v = c.pick(lambda v: not v.wild and v.size > 0 and test(v))
    big = max(v.bound, 2.0)
    return v, Val(c.name("c"), v.shape, v.dtype, False, big, max(v.err, eps(v.dtype) * big))


def kept(chain: Chain, c: Val) -> tuple[str, float]:
    """(text of the carry's next value, its error), made of the newest value of a loop's body."""
    v = chain.pick(lambda v: not v.wild and (v.exact or v.floating))
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
    y = chain.pick(lambda v: not v.wild) if c.flip() else carry
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
    test = f"(t[0] < {c.scalar(4)})" + (f" & (jnp.sum(t[1]) % 5 != 3)" if start.integer and c.flip() else "")
    before = [*before, f"{f}s = lax.while_loop(lambda t: {test}, lambda t: {f}(*t), (jnp.int32(0), {start}))"]
    return c.add(f"{f}s[1]", *looped(err, start, 3), before=before)


@op(3)
def cond(c: Chain):
    v = c.pick(lambda v: not v.wild and v.size > 0)
    branches, before, sizes = [], [], []
    for _ in range(c.choose([2, 2, 3])):
        p = Val(c.name("p"), v.shape, v.dtype, False, v.bound, v.err)
        chain = c.body([p], 2)
        text, bound, err = chain.fitted(chain.pick(lambda v: not v.wild and (v.exact or v.floating)), v.shape, v.dtype)
        name, lines = c.function([p], chain, text)
        branches.append(name)
        before += lines
        sizes.append((bound, err))
    which = c.scalar(len(branches))
    text = f"lax.cond({which} == 1, {', '.join(branches)}, {v})" if len(branches) == 2 else f"lax.switch({which}, [{', '.join(branches)}], {v})"
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
    y = chain.pick()
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
    y = chain.pick(lambda v: v.floating and not v.wild)
    text, _, _ = chain.fitted(y, y.shape, "float32")
    f, before = c.function([p], chain, f"jnp.sum(jnp.square({text}))")
    remat = c.choose(["{}", "jax.checkpoint({})"]).format(f)
    worst = max(eps(d) for d in FLOATS if d in "\n".join(before) or d in {v.dtype, y.dtype, *(w.dtype for w in chain.values)})
    return c.add(f"{f}g / (1 + jnp.max(jnp.abs({f}g)))", 1, 64 * worst, before=[*before, f"{f}g = jax.grad({remat})({v})"])
