"""Ridge regression: by conjugate gradients without forming the matrix, by `linalg.solve`, and by Cholesky with the log-likelihood."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_factor, cho_solve

SAMPLES, FEATURES, TARGETS = 48, 16, 4


def arguments():
    r = np.random.default_rng(8)
    x = r.standard_normal((SAMPLES, FEATURES)).astype(np.float32)
    truth = r.standard_normal((FEATURES, TARGETS))
    return x, (x @ truth + 0.1 * r.standard_normal((SAMPLES, TARGETS))).astype(np.float32), np.float32(0.5)


def fit_by_conjugate_gradients(x, y, strength):
    normal = lambda w: x.T @ (x @ w) + strength * w
    w, _ = jax.scipy.sparse.linalg.cg(normal, x.T @ y, tol=1e-6, maxiter=50)
    return w, jnp.mean((x @ w - y) ** 2)


def fit_by_solve(x, y, strength):
    w = jnp.linalg.solve(x.T @ x + strength * jnp.eye(FEATURES), x.T @ y)
    return w, jnp.mean((x @ w - y) ** 2)


def fit_by_cholesky(x, y, strength):
    factor = cho_factor(x @ x.T + strength * jnp.eye(SAMPLES), lower=True)
    alpha = cho_solve(factor, y)
    return x.T @ alpha, 0.5 * jnp.vdot(y, alpha) + TARGETS * jnp.log(jnp.diagonal(factor[0])).sum()


def with_gradient(fit):
    """The fit, and how its second result moves with the data and with the strength."""
    return lambda *args: (fit(*args)[0], jax.value_and_grad(lambda *a: fit(*a)[1], argnums=(0, 2))(*args))


def conjugate_gradients():
    return with_gradient(fit_by_conjugate_gradients), arguments()


def solve():
    return with_gradient(fit_by_solve), arguments()


def cholesky():
    return with_gradient(fit_by_cholesky), arguments()
