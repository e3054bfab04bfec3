"""How well a representation W recovers the directions, in the basis where M = I[:, :r].

Where sizes are padded, W is zero beyond the true ones; `r` may then be traced and `max_r` is its padded size.
For another basis pass W Q with Q orthogonal and its first r columns those of M.

Source: SVD-based subspace recovery is standard; the names and the degenerate cases are ours.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from mtfl_jax.learning import draws, keys, krylov
from mtfl_jax.learning.krylov import EXTRA, TOLERANCE, Spectra, columns, outside, rounding_of
from mtfl_jax.learning.scalars import IntLike

DENSE_BELOW = 64
"""Least side of a matrix from which iteration is tried before a factorisation."""
ROUNDS = 24
LANCZOS = 48
STAGE = 16
"""Steps of Lanczos between looks at its bound."""
GRAM_GAP = 2e-4
"""Least gap of a Gram matrix's spectrum, beside its largest eigenvalue, for its factorisation to serve."""


class Recovery(NamedTuple):
    """How well the row space of W gives the r directions.

    subspace_distance: ‖(I − MMᵀ)V_r‖₂ with V_r the top-r right singular vectors of W, the sine of the largest
        principal angle: 0 perfect, 1 a direction missed; 1 where W has rank < r.
    directions_recovered: how many of the r principal angles have a sine below ½.
    feature_energy: ‖WM‖_F²/‖W‖_F² in [0, 1]; 0 for W = 0.
    spectral_ratio: σ_r(WM)/‖W(I − MMᵀ)‖₂; infinite where nothing of W is orthogonal to M, 0 for W = 0.
    mended: whether, on an accelerator, a library decomposed W, as the quick way met no bound.
    """

    subspace_distance: Float[Array, ""]
    directions_recovered: Int[Array, ""]
    feature_energy: Float[Array, ""]
    spectral_ratio: Float[Array, ""]
    mended: Bool[Array, ""]


def recovery(
    W: Float[Array, "width d"], r: IntLike, max_r: int | None = None, *, accelerator: bool = False
) -> Recovery:
    """All of `Recovery` of W with M = I[:, :r]; where W is not finite, NaN and no direction recovered.

    accelerator: by `krylov`, which suits a batch of them, and not by what suits a processor's core.
    """
    max_r = int(r) if max_r is None else max_r
    along = jnp.arange(W.shape[1]) < r
    finite = jnp.all(jnp.isfinite(W))
    W = jnp.where(finite, W, 0)
    # Every measurement is free of scale; unit size keeps squares of tiny or huge weights representable.
    largest = jnp.max(jnp.abs(W))
    W = W / jnp.where(largest > 0, largest, 1)
    total = jnp.sum(W**2)
    energy = jnp.sum(jnp.where(along, W, 0) ** 2) / jnp.where(total > 0, total, 1)
    if accelerator:
        found = krylov.spectra(W, r, max_r)
    else:
        found = (_factorised if min(W.shape) < DENSE_BELOW else _iterated)(W, r, max_r)
    return Recovery(
        subspace_distance=jnp.where(finite, jnp.sqrt(jnp.clip(found.sines2[-1], 0, 1)), jnp.nan),
        directions_recovered=jnp.where(finite, jnp.sum(found.sines2 < 0.25) - (max_r - r), 0),
        feature_energy=jnp.where(finite, energy, jnp.nan),
        spectral_ratio=jnp.where(finite, jnp.where(found.sigma_r > 0, found.sigma_r / found.across, 0), jnp.nan),
        mended=jnp.asarray(accelerator) & ~found.quick,
    )


def _sines2(right: Float[Array, "max_r d"], found: Bool[Array, " max_r"], r: IntLike) -> Float[Array, " max_r"]:
    """Squared sines of the top right singular vectors, where W has those directions; ascending."""
    max_r, d = right.shape
    direction = jnp.arange(max_r) < r
    off_span = jnp.where(jnp.arange(d) < r, 0, right) * (direction & found)[:, None]
    # A direction that W lacks has sine 1; a padded one has sine 0.
    return jnp.linalg.eigvalsh(off_span @ off_span.T + jnp.diag((direction & ~found).astype(right.dtype)))


def _factorised(W: Float[Array, "width d"], r: IntLike, max_r: int) -> Spectra:
    """By QR and SVD."""
    R, top, sigma_r = _inside(W, r, max_r)
    across = jnp.linalg.svd(outside(R, r), compute_uv=False)[0]
    return Spectra(top, sigma_r, across, jnp.asarray(False))


def _inside(
    W: Float[Array, "width d"], r: IntLike, max_r: int
) -> tuple[Float[Array, "_ d"], Float[Array, " {max_r}"], Float[Array, ""]]:
    """R of W's QR, sines2 and σ_r(WM)."""
    # R has the singular values and right singular vectors of W.
    R = jnp.linalg.qr(W, mode="r")
    _, sigma, Vt = jnp.linalg.svd(R, full_matrices=False)
    found = first(sigma, max_r) > rounding_of(W, sigma[0])
    return R, _sines2(first(Vt, max_r), found, r), _sigma_r(W, sigma[0], r, max_r)


def _sigma_r(W: Float[Array, "width d"], largest: Float[Array, ""], r: IntLike, max_r: int) -> Float[Array, ""]:
    """σ_r(WM), 0 where it is rounding."""
    R = jnp.linalg.qr(columns(W - outside(W, r), max_r), mode="r")
    sigma = first(jnp.linalg.svd(R, compute_uv=False), max_r)[r - 1]
    return jnp.where(sigma > rounding_of(W, largest), sigma, 0)


def _iterated(W: Float[Array, "width d"], r: IntLike, max_r: int) -> Spectra:
    """By iteration on the smaller Gram matrix where its error bounds come below TOLERANCE, else by factorisation: of
    the Gram matrix where the spectrum has no gap behind the r-th singular value but one behind the block's last.

    What rounding of the Gram matrix does to the block's span is of the order eps over that gap (found: below 2e-5 in a
    sine at T = 1 and 4); inside the span W itself tells the directions apart.
    """
    beyond = outside(W, r)
    tall = W.shape[0] >= W.shape[1]
    gram = W.T @ W if tall else W @ W.T
    gram_outside = outside(outside(gram, r).T, r) if tall else beyond @ beyond.T
    start = draws.normal(keys.root(0), gram.shape[0], max_r + EXTRA)
    V, error = _top_subspace(gram, start, r)
    largest, error_outside = _largest(gram_outside, start[:, 0])

    def from_subspace(V: Float[Array, "side block"]) -> tuple[Float[Array, " max_r"], Float[Array, ""]]:
        # Singular values from W itself: those of its Gram matrix lose half of the digits.
        if tall:
            _, sigma, Vt = jnp.linalg.svd(jnp.linalg.qr(W @ V, mode="r"))
            right = Vt @ V.T
        else:
            Q, R = jnp.linalg.qr(W.T @ V)
            U, sigma, _ = jnp.linalg.svd(R)
            right = (Q @ U).T
        # W has the r directions: the gap of the bound lies between their singular values and smaller ones.
        return _sines2(right[:max_r], jnp.ones(max_r, bool), r), _sigma_r(W, sigma[0], r, max_r)

    def from_gram() -> tuple[Float[Array, " max_r"], Float[Array, ""]]:
        theta, U = jnp.linalg.eigh(gram)
        theta, V = theta[::-1], U[:, : -block - 1 : -1]
        apart = theta[r - 1] - theta[block] > GRAM_GAP * theta[0]
        return jax.lax.cond(apart, lambda: from_subspace(V), lambda: _inside(W, r, max_r)[1:])

    block = start.shape[1]
    sines2, sigma_r = jax.lax.cond(error <= TOLERANCE, lambda: from_subspace(V), from_gram)
    across = jax.lax.cond(
        error_outside <= 2 * TOLERANCE * largest,
        lambda: jnp.sqrt(largest),
        lambda: jnp.linalg.svd(jnp.linalg.qr(beyond, mode="r"), compute_uv=False)[0],
    )
    return Spectra(sines2, sigma_r, across, jnp.asarray(False))


def _top_subspace(
    G: Float[Array, "side side"], start: Float[Array, "side block"], r: IntLike
) -> tuple[Float[Array, "side block"], Float[Array, ""]]:
    """Block power iteration with Rayleigh–Ritz: Ritz vectors of G, and a bound on the sine of the angle between
    the first r and the true ones.

    The bound is ‖GV − VΘ‖_F over the gap (Davis and Kahan 1970, the sin Θ theorem), the gap being that of the Ritz
    values less the residual of the next; it presumes that the random start misses none of the leading directions.
    """
    first = jnp.arange(start.shape[1]) < r

    def step(carry: tuple) -> tuple:
        Q, _, before, _, count = carry
        Z = G @ Q
        H = Q.T @ Z
        theta, U = jnp.linalg.eigh(H)
        theta, U = theta[::-1], U[:, ::-1]
        V, moved = Q @ U, Z @ U
        residual = jnp.sum((moved - V * theta) ** 2, axis=0)
        gap = theta[r - 1] - theta[r] - jnp.sqrt(residual[r])
        error = jnp.sqrt(jnp.sum(jnp.where(first, residual, 0)))
        error = jnp.where(gap > 0, error / gap, jnp.inf)
        # What is left to gain at the present pace; a pace is meaningful after a few rounds.
        slow = (count >= 5) & ~(error * (error / before) ** (ROUNDS - count) < TOLERANCE)
        return jnp.linalg.qr(moved)[0], V, error, slow, count + 1

    def unfinished(carry: tuple) -> Bool[Array, ""]:
        _, _, error, slow, count = carry
        return (error > TOLERANCE) & ~slow & (count < ROUNDS)

    carry = (jnp.linalg.qr(G @ start)[0], jnp.zeros_like(start), jnp.asarray(jnp.inf, G.dtype), jnp.asarray(False), 0)
    _, V, error, *_ = jax.lax.while_loop(unfinished, step, carry)
    return V, error


def _largest(G: Float[Array, "side side"], start: Float[Array, " side"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The largest eigenvalue of G by Lanczos with full reorthogonalisation, and a bound on its error (Kato and Temple):
    in stages of STAGE steps, until the bound is below TOLERANCE of it.
    """
    side, tiny = G.shape[0], jnp.finfo(G.dtype).tiny
    most = min(LANCZOS, side)

    def normalised(v: Float[Array, " side"]) -> tuple[Float[Array, " side"], Float[Array, ""]]:
        length = jnp.linalg.norm(v)
        return v / jnp.maximum(length, tiny), length

    Carry = tuple[Float[Array, "_ side"], Float[Array, " steps"], Float[Array, " steps"]]

    def step(i: Int[Array, ""], carry: Carry) -> Carry:
        basis, alpha, beta = carry
        v = G @ basis[i]
        alpha = alpha.at[i].set(basis[i] @ v)
        v = v - (basis @ v) @ basis
        v, length = normalised(v - (basis @ v) @ basis)
        return basis.at[i + 1].set(v), alpha, beta.at[i].set(length)

    def stage(first: int, carry: Carry) -> tuple[Float[Array, ""], Float[Array, ""]]:
        last = min(first + STAGE, most)
        carry = jax.lax.fori_loop(first, last, step, carry)
        alpha, beta = (numbers[:last] for numbers in carry[1:])
        values, vectors = jnp.linalg.eigh(jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1))
        residuals = beta[-1] * jnp.abs(vectors[-1])
        gap = values[-1] - values[-2] - residuals[-2]
        error = jnp.where(gap > 0, jnp.minimum(residuals[-1], residuals[-1] ** 2 / gap), residuals[-1])
        if last == most:
            return values[-1], error
        return jax.lax.cond(
            error <= TOLERANCE * values[-1], lambda _: (values[-1], error), lambda carry: stage(last, carry), carry
        )

    basis = jnp.zeros((most + 1, side), G.dtype).at[0].set(normalised(start)[0])
    zeros = jnp.zeros(most, G.dtype)
    return stage(0, (basis, zeros, zeros))


def first(rows: Float[Array, " _ *rest"], n: int) -> Float[Array, " {n} *rest"]:
    """The first n rows, zeros where there are fewer."""
    rows = rows[:n]
    return jnp.pad(rows, [(0, n - rows.shape[0])] + [(0, 0)] * (rows.ndim - 1))
