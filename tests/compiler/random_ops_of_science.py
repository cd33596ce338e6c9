"""Operations of `random_programs.py` that index, multiply, transform and draw. Each appends a statement, or raises `Skip`."""

from __future__ import annotations

import math

from tests.compiler.random_programs import FLOATS, Chain, Val, eps, filled, op, same


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
        at = c.scalar(v.shape[d])
        texts = [f"lax.dynamic_slice({v}, ({starts},), {sizes})", f"lax.dynamic_index_in_dim({v}, {at}, {d})"]
        return same(c, v, c.choose([*texts, f"lax.dynamic_slice_in_dim({v}, {at}, {sizes[d]}, {d})"]))
    w = c.operand(sizes, v.dtype)
    return c.add(f"lax.dynamic_update_slice({v}, {w}, ({starts},))", max(v.bound, w.bound), max(v.err, w.err), v.wild or w.wild)


@op(2)
def make(c: Chain):
    n, m = c.choose([3, 4, 6, 8]), c.choose([2, 5, 4])
    texts = [f"lax.broadcasted_iota('int32', ({n}, {m}), {c.int(0, 1)})", f"jnp.arange({n * m}, dtype='uint8').reshape({n}, {m})",
             f"jnp.eye({n}, {m}, dtype=bool)", f"jnp.tri({n}, {m}, {c.int(-1, 1)}, dtype='int32')", f"jnp.arange({n})[::-1]",
             f"(jnp.arange({n})[:, None] + jnp.arange({m})[None] * 2) % 3",
             f"jax.nn.one_hot({c.scalar(n)}, {n}, dtype='int32')"]  # fmt: skip
    return c.add(c.choose(texts))


@op(3)
def draw_random(c: Chain):
    shape = tuple(c.choose([1, 3, 4, 6, 8]) for _ in range(c.int(0, 3)))
    key = c.choose(["jax.random.key(0)", f"jax.random.fold_in(jax.random.key(1), {c.scalar(5)})", f"jax.random.key({c.scalar(9)})",
                    f"jax.random.split(jax.random.key(2), 3)[{c.scalar(3)}]"])  # fmt: skip
    dtype = c.choose(FLOATS)
    texts = [f"jax.random.normal({key}, {shape}, {dtype!r})", f"jax.random.uniform({key}, {shape})", f"jax.random.permutation({key}, 6)",
             f"jax.random.bernoulli({key}, 0.5, {shape})", f"jax.random.bits({key}, {shape}, 'uint8')",
             f"jax.random.randint({key}, {shape}, 0, 9)",
             f"jax.vmap(lambda k: jax.random.uniform(k, {shape}))(jax.random.split({key}, 4))"]  # fmt: skip
    text = c.choose(texts)
    return c.add(text, 6, 64 * eps(dtype) if "normal" in text else 0)


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
    wide = f", preferred_element_type={'float32' if v.floating else 'int32'!r}" if c.flip() else ""
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
    dots = [f"jnp.einsum('...i,...i->...', {v}, {v})", *([f"{v} @ jnp.swapaxes({v}, -1, -2)"] if v.ndim > 1 else [])]
    return product(c, v, v, v.shape[-1], c.choose(dots))


# ---- windows, transforms, linear algebra -----------------------------------------------------------------------------
@op(5)
def convolution(c: Chain):
    v = c.tame(lambda v: v.ndim in (3, 4) and v.size > 0)
    space, last = v.ndim - 2, c.flip()  # channels last, or before the space
    sizes, channels, batch = (v.shape[1:-1], v.shape[-1], v.shape[0]) if last else (v.shape[2:], v.shape[1], v.shape[0])
    kind, groups = c.choose(["feature", "feature", "batch"]), 1
    if c.int(0, 2) == 0:
        groups = c.choose([g for g in (1, 2, 3, 4, 6) if (channels if kind == "feature" else batch) % g == 0])
    window = tuple(c.int(1, min(3, n + 1)) for n in sizes)
    into, out = channels // groups if kind == "feature" else channels, groups * c.choose([1, 2, 3])
    w = c.operand((*window, into, out), v.dtype)
    names = "HW"[:space]
    numbers = (f"N{names}C" if last else f"NC{names}", f"{names}IO", f"N{names}C" if c.flip() else f"NC{names}")
    # not negative: there XLA on CPU, which we compare with, reads out of bounds
    padding = c.choose(["'SAME'", "'VALID'", str(tuple((c.int(0, 2), c.int(0, 2)) for _ in names)), str(tuple((1, 1) for _ in names))])
    each = lambda: tuple(c.choose([1, 1, 2]) for _ in names)
    spread = "" if "'" in padding else f"lhs_dilation={each()}, "
    text = (
        f"lax.conv_general_dilated({v}, {w}, {each()}, {padding}, {spread}rhs_dilation={each()}, "
        f"dimension_numbers={numbers}, {kind}_group_count={groups})"
    )
    return product(c, v, w, math.prod(window) * into, text)


@op(3)
def pooling(c: Chain):
    v = c.tame(lambda v: filled(v) and c.kinky(v))
    each = lambda *options: tuple(c.choose(options) for _ in v.shape)
    window, strides = each(1, 2, 3), each(1, 1, 2)
    padding = c.choose(["'SAME'", "'VALID'", str(tuple((c.int(0, 1), c.int(0, 1)) for _ in v.shape))])
    n = math.prod(window)
    if c.smooth or c.flip():
        return c.rounded(f"lax.reduce_window({v}, 0.0, lax.add, {window}, {strides}, {padding})", v.bound * n, v.err * n, v, 4 + n)
    dilated = f"base_dilation={each(1, 1, 2)}, window_dilation={each(1, 1, 2)}"
    text = f"lax.reduce_window({v}, jnp.asarray(-9, {v}.dtype), lax.max, {window}, {strides}, {padding}, {dilated})"
    return c.add(text, 9, v.err)


@op(3)
def fourier(c: Chain):
    v = c.tame(lambda v: filled(v) and v.dtype == "float32")
    d = c.dim(v)
    n = v.shape[d]
    texts = [f"jnp.fft.fft({v}, axis={d}).real", f"jnp.fft.ifft({v}, axis={d}).imag", f"jnp.fft.rfft({v}, axis={d}).imag",
             f"jnp.fft.irfft({v} * (1 - 0.5j), n={c.choose([n, 4, 5])}, axis={d})"]  # fmt: skip
    if v.ndim > 1:
        texts += [f"jnp.fft.fft2({v}).real", f"jnp.fft.fftshift({v}, {d})", f"(jnp.exp(1j * {v}) * jnp.conj({v} + 1j)).real"]
        n *= max(v.shape)
    return c.rounded(c.choose(texts), (v.bound + 1) * 2 * n, v.err * (v.bound + 2) * n, v, 16 + n**0.5)


@op(2)
def linear_algebra(c: Chain):
    v = c.tame(lambda v: v.ndim in (2, 3) and 1 < v.shape[-1] <= 6 and v.size > 0 and v.dtype == "float32")
    n = v.shape[-1]
    eye = f"jnp.expand_dims(jnp.eye({n}), {tuple(range(v.ndim - 2))})"
    safe = f"(jnp.swapaxes(jnp.tanh({v}), -1, -2) @ jnp.tanh({v}) / {v.shape[-2]} + 2 * {eye})"
    low = f"jnp.linalg.cholesky({safe})"
    b = f"{safe}[..., :1]"
    texts = [low, f"jnp.linalg.solve({safe}, {b})", f"jax.scipy.linalg.solve_triangular({low}, {b}, lower=True)", f"jnp.linalg.inv({safe})",
             f"jnp.linalg.slogdet({safe})[1]", f"jnp.linalg.eigvalsh({safe})" if not c.smooth else low]  # fmt: skip
    return c.rounded(c.choose(texts), 2 + n, 64 * n * v.err, v, 64 * n)


@op(3)
def mixed(c: Chain):
    """Functions of jax.numpy that are small programs of their own."""
    v = c.tame(lambda v: filled(v) and v.exact)
    d = c.dim(v)
    n = v.shape[d]
    if c.smooth or c.flip():
        options = [(f"jnp.diff({v}, axis={d})", 2), (f"lax.reduce({v}, jnp.asarray(0, {v}.dtype), lax.add, ({d},))", n),
                   (f"lax.associative_scan(jnp.add, {v}, axis={d})", n), (f"jnp.gradient({v}, axis={d})" if n > 1 else f"-{v}", 2),
                   (f"jnp.kron({v}, jnp.ones((2,) * {v.ndim}, {v}.dtype))", 1),
                   (f"jnp.vander({v}.reshape(-1)[:4] / 8, 3)", 1)]  # fmt: skip
        text, bound = c.choose(options)
        return c.rounded(text, bound * v.bound, 0, v, 4 + n)
    texts = [f"jnp.searchsorted(jnp.sort({v}.reshape(-1)), {v})", f"jnp.count_nonzero({v}, {d})", f"jnp.median({v}, {d})",
             f"jnp.digitize({v}, jnp.arange(-2, 3, dtype={v}.dtype))", f"lax.reduce({v}, jnp.asarray(-9, {v}.dtype), lax.max, ({d},))",
             f"lax.associative_scan(jnp.maximum, {v}, axis={d})", f"jnp.bincount(jnp.floor({v}.reshape(-1)).astype(int) + 9, length=12)",
             f"jnp.nonzero({v}, size=4, fill_value=-1)[0]", f"jnp.unique({v}, size=5, fill_value=0)", f"jnp.ptp({v}, {d})",
             f"lax.reduce_precision({v}, 8, 4)", f"lax.bitcast_convert_type({v}, 'uint8')"]  # fmt: skip
    text = c.choose(texts)
    return c.rounded(text, 2 * v.bound, 0, v) if "median" in text or "ptp" in text else c.add(text, 9)


# ---- normalisation ---------------------------------------------------------------------------------------------------
@op(3)
def normalise(c: Chain):
    v = c.tame(lambda v: filled(v) and c.kinky(v))
    d = c.dim(v)
    text = c.choose([f"jax.nn.softmax({v}, {d})", f"jax.nn.log_softmax({v}, {d})", f"jax.nn.standardize({v}, {d}, epsilon=0.1)"])
    return c.rounded(text, 2 * v.bound + 4, 16 * v.err, v, 16)
