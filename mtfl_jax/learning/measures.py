"""Measurements of a representation W (width, d), in the basis where M = I[:, :r].

Where sizes are padded, W is zero beyond the true ones; `r` may then be traced and `max_r` is its padded size.
For another basis pass W Q with Q orthogonal and its first r columns those of M.

Source: SVD-based subspace recovery is standard; the names and the degenerate cases are ours.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class Recovery(NamedTuple):
    """How well the row space of W gives the r directions; scalars.

    subspace_distance: ‖(I − MMᵀ)V_r‖₂ with V_r the top-r right singular vectors of W, the sine of the largest
        principal angle: 0 perfect, 1 a direction missed; 1 where W has rank < r.
    directions_recovered: how many of the r principal angles have a sine below ½.
    feature_energy: ‖WM‖_F²/‖W‖_F² in [0, 1]; 0 for W = 0.
    spectral_ratio: σ_r(WM)/‖W(I − MMᵀ)‖₂; infinite where nothing of W is orthogonal to M, 0 for W = 0.
    """

    subspace_distance: Array
    directions_recovered: Array
    feature_energy: Array
    spectral_ratio: Array


def recovery(W: Array, r: int | Array, max_r: int | None = None) -> Recovery:
    """All of `Recovery` of W (width, d) with M = I[:, :r]; where W is not finite, NaN and no direction recovered."""
    max_r = int(r) if max_r is None else max_r
    d = W.shape[1]
    along = jnp.arange(d) < r
    direction = jnp.arange(max_r) < r
    # Every measurement is free of scale; unit size keeps squares of tiny or huge weights representable.
    finite = jnp.all(jnp.isfinite(W))
    largest = jnp.max(jnp.abs(W))
    W = W / jnp.where(largest > 0, largest, 1)
    total = jnp.sum(W**2)
    energy = jnp.sum(jnp.where(along, W, 0) ** 2) / jnp.where(total > 0, total, 1)
    # R has the singular values and right singular vectors of W.
    R = jnp.linalg.qr(W, mode="r")
    _, sigma, Vt = jnp.linalg.svd(R, full_matrices=False)
    rank_floor = sigma[0] * max(W.shape) * jnp.finfo(W.dtype).eps
    found = _first(sigma, max_r) > rank_floor
    off_span = jnp.where(along, 0, _first(Vt, max_r)) * (direction & found)[:, None]
    # A direction that W lacks has sine 1; a padded one has sine 0.
    gram = off_span @ off_span.T + jnp.diag((direction & ~found).astype(W.dtype))
    sines2 = jnp.linalg.eigvalsh(gram)
    parallel = jnp.linalg.svd(_columns(jnp.where(along, R, 0), max_r), compute_uv=False)
    across = jnp.linalg.svd(jnp.where(along, 0, R), compute_uv=False)[0]
    sigma_r = _first(parallel, max_r)[r - 1]
    # Rounding is no direction.
    sigma_r = jnp.where(sigma_r > rank_floor, sigma_r, 0)
    return Recovery(
        subspace_distance=jnp.where(finite, jnp.sqrt(jnp.clip(sines2[-1], 0, 1)), jnp.nan),
        directions_recovered=jnp.where(finite, jnp.sum(sines2 < 0.25) - (max_r - r), 0),
        feature_energy=jnp.where(finite, energy, jnp.nan),
        spectral_ratio=jnp.where(finite, jnp.where(sigma_r > 0, sigma_r / across, 0), jnp.nan),
    )


def _first(rows: Array, n: int) -> Array:
    """The first n rows, zeros where there are fewer."""
    rows = rows[:n]
    return jnp.pad(rows, [(0, n - rows.shape[0])] + [(0, 0)] * (rows.ndim - 1))


def _columns(matrix: Array, n: int) -> Array:
    return _first(matrix.T, n).T


def feature_similarity(h: Array, z: Array, r: int | Array) -> Array:
    """Mean cosine similarity of features h (n, width) over pairs of samples, by the Hamming distance of their orthants.

    z: (n, max_r) in {±1}, zero in the columns from r on. Returns (max_r + 1,), entry k for distance k; NaN where no
    pair of distinct samples has that distance. A zero feature vector has cosine 0 with all.
    """
    n, max_r = z.shape
    norm = jnp.linalg.norm(h, axis=1, keepdims=True)
    unit = h / jnp.where(norm > 0, norm, 1)
    cosine = unit @ unit.T
    distance = jnp.round((r - z @ z.T) / 2).astype(int)
    pair = jnp.arange(n)[:, None] < jnp.arange(n)
    at = (distance == jnp.arange(max_r + 1)[:, None, None]) & pair
    return jnp.sum(jnp.where(at, cosine, 0), axis=(1, 2)) / jnp.sum(at, axis=(1, 2))


def task_error(outputs: Array, y: Array, num_tasks: int | Array) -> Array:
    """Share of wrong signs (sign(0) = +1) over samples and the first `num_tasks` tasks: outputs, y (n, T) -> scalar."""
    n, max_tasks = y.shape
    wrong = ((outputs >= 0) != (y >= 0)) & (jnp.arange(max_tasks) < num_tasks)
    return jnp.sum(wrong) / (n * num_tasks)
