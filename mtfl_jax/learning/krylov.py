"""What recovery needs of W's spectra, by array operations that a batch shares: for accelerators.

There a library decomposes the matrices of a batch one after the other, both sides of a condition run for every lane,
and products of matrices cost next to nothing. So the largest singular values come from block Krylov spaces, restarted
until a bound on their error by the residual in W itself is met, with rotations for what is small; a matrix with a small
side has its whole spectrum. Lanes that meet no bound are gathered, and a library decomposes their Gram matrices.

Source: the bounds are the sin Θ theorem of Davis and Kahan (1970) and that of Kato and Temple; the start, which holds
the span, is ours.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_batching import custom_vmap
from jaxtyping import Bool, Float, Int

from mtfl_jax.learning import draws, jacobi, keys
from mtfl_jax.learning.scalars import IntLike

WHOLE = 64
"""Largest side of a matrix whose singular values are all computed."""
EXTRA = 8
"""Columns that a block has beyond r."""
STEPS = 4
"""Blocks of a Krylov space beside the one that it starts with."""
RESTARTS = 8
TOLERANCE = 1e-5
"""Largest bound on the error of what is accepted: of a sine, absolute; of a singular value, relative."""
ROUNDING = 16
"""Bounds that are accepted above TOLERANCE, in units of what rounding W's largest singular value does over the gap."""
MENDED = 8
"""Matrices that a library decomposes at a time."""


class Spectra(NamedTuple):
    """What recovery needs of W, and whether it came without a library's decomposition.

    sines2: squared sines of the principal angles, ascending; sigma_r: σ_r(WM); across: ‖W(I − MMᵀ)‖₂.
    """

    sines2: Float[Array, " max_r"]
    sigma_r: Float[Array, ""]
    across: Float[Array, ""]
    quick: Bool[Array, ""]


def spectra(W: Float[Array, "width d"], r: IntLike, max_r: int) -> Spectra:
    """Of W with M = I[:, :r]."""

    @custom_vmap
    def alone(W: Float[Array, "width d"], r: Int[Array, ""]) -> Spectra:
        found = quick(W, r, max_r)
        return jax.lax.cond(found.quick, lambda: found, lambda: by_gram(W, r, max_r))

    @alone.def_vmap
    def batched(size: int, mapped: list[bool], *each: Array) -> tuple[Spectra, Spectra]:
        W, r = (a if own else jnp.broadcast_to(a, (size, *a.shape)) for a, own in zip(each, mapped, strict=True))
        found = jax.vmap(lambda W, r: quick(W, r, max_r))(W, r)
        # The predicate is one for the batch, so that nothing runs where nobody needs it.
        found = jax.lax.cond(jnp.all(found.quick), lambda: found, lambda: _mended(found, W, r, max_r))
        return found, jax.tree.map(lambda _: True, found)

    return alone(W, jnp.asarray(r))


def _mended(found: Spectra, W: Float[Array, "lanes width d"], r: Int[Array, " lanes"], max_r: int) -> Spectra:
    """The lanes that are not quick by their Gram matrices."""
    lanes = len(W)
    order = jnp.nonzero(~found.quick, size=lanes, fill_value=lanes)[0]

    def some(i: IntLike, found: Spectra) -> Spectra:
        at = jax.lax.dynamic_slice_in_dim(jnp.pad(order, (0, MENDED), constant_values=lanes), i * MENDED, MENDED)
        own = jax.vmap(lambda W, r: by_gram(W, r, max_r))(
            jnp.take(W, at, axis=0, mode="clip"), jnp.take(r, at, mode="clip")
        )
        return jax.tree.map(lambda all_, leaf: all_.at[at].set(leaf, mode="drop"), found, own)

    return jax.lax.fori_loop(0, -(-jnp.sum(~found.quick) // MENDED), some, found)


def by_gram(W: Float[Array, "width d"], r: IntLike, max_r: int) -> Spectra:
    """By a library's eigenvectors of the smaller Gram matrix, which W then refines."""
    tall, block = W.shape[0] >= W.shape[1], min(max_r + EXTRA, *W.shape)
    V = jnp.linalg.eigh(_gram(W))[1][:, : -block - 1 : -1]
    for _ in range(2):
        # Rounding of the Gram matrix has turned V out of the leading space; a power step on W turns it back.
        V = _orthonormal(W.T @ (W @ V) if tall else W @ (W.T @ V), jnp.zeros((len(V), 0), V.dtype))
    if tall:
        found = jacobi.refined(W @ V, V)
        right = found.V
    else:
        found = jacobi.refined(W.T @ V, V)
        right = _normalised(found.BV, found.values)
    across = jnp.maximum(jnp.linalg.eigvalsh(_gram(outside(W, r)))[-1], 0)
    return Spectra(*_angles(W, right, found.values, r, max_r), jnp.sqrt(across), jnp.asarray(False))


def quick(W: Float[Array, "width d"], r: IntLike, max_r: int) -> Spectra:
    """Without a library's decomposition; `quick` is false where the bounds are not met."""
    block = max_r + EXTRA
    if min(W.shape) <= max(WHOLE, (1 + STEPS) * block):
        return _whole(W, r, max_r)
    d, first, eps = W.shape[1], jnp.arange(block) < r, jnp.finfo(W.dtype).eps

    def angles(found: jacobi.Singular, missed: Float[Array, " block"]) -> Bool[Array, ""]:
        sigma = found.values
        # Directions that W lacks have no angle: the gap is that behind those it has.
        n = jnp.sum((sigma > rounding_of(W, sigma[0])) & first)
        following = sigma[n] + missed[n]
        gaps, own = sigma - following, jnp.arange(block) < n
        turned = missed / jnp.where(gaps > 0, gaps, 1) / (1 + following / jnp.where(sigma > 0, sigma, 1))
        bound = jnp.sqrt(jnp.sum(jnp.where(own, turned, 0) ** 2))
        rounding = ROUNDING * eps * sigma[0] / jnp.where(gaps[n - 1] > 0, sigma[n - 1] - sigma[n], 1)
        return jnp.all((gaps > 0) | ~own) & (bound <= jnp.maximum(TOLERANCE, rounding))

    def largest(found: jacobi.Singular, missed: Float[Array, " block"]) -> Bool[Array, ""]:
        gap = found.values[0] - found.values[1] - missed[1]
        error = jnp.minimum(missed[0], missed[0] ** 2 / jnp.where(gap > 0, gap, 1) + jnp.where(gap > 0, 0, jnp.inf))
        return error <= TOLERANCE * found.values[0]

    def one(start: Float[Array, "d block"], whole: Bool[Array, ""]) -> tuple[Array, tuple[jacobi.Singular, Array]]:
        A = jnp.where(whole, W, outside(W, r))
        found, exact = _largest(A, start, lambda *of: jnp.where(whole, angles(*of), largest(*of)))
        # The vectors behind the first r are near the largest outside already.
        return outside(found.V.T, r).T, (found, exact)

    random = draws.normal(keys.root(0), d, EXTRA)
    start = jnp.concatenate([jnp.eye(d, max_r, dtype=W.dtype), random], axis=1)
    # One after the other by one body, which takes seconds to compile.
    _, (found, exact) = jax.lax.scan(one, start, jnp.asarray([True, False]))
    sines2, sigma_r = _angles(W, found.V[0], found.values[0], r, max_r)
    return Spectra(sines2, sigma_r, found.values[1, 0], jnp.all(exact))


def _largest(
    A: Float[Array, "width d"],
    start: Float[Array, "d block"],
    exact: Callable[[jacobi.Singular, Float[Array, " block"]], Bool[Array, ""]],
) -> tuple[jacobi.Singular, Bool[Array, ""]]:
    """The largest singular values of A with their vectors, and whether they are `exact`, a function of them and of the
    residuals ‖Aᵀu − σv‖.
    """
    (width, d), block = A.shape, start.shape[1]
    most = (1 + STEPS) * block

    def step(i: IntLike, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        new, Z, AZ = carry
        Q = _orthonormal(new, Z)
        AQ = A @ Q
        Z, AZ = (jax.lax.dynamic_update_slice_in_dim(all_, own, i * block, 1) for all_, own in ((Z, Q), (AZ, AQ)))
        return A.T @ AQ, Z, AZ

    def grown(carry: tuple) -> tuple:
        (_, before, _), _, count = carry
        nothing = jnp.zeros((d, most), A.dtype), jnp.zeros((width, most), A.dtype)
        _, Z, AZ = jax.lax.fori_loop(0, 1 + STEPS, step, (before, *nothing))
        V = jacobi.started(AZ)
        Z, AZ = Z @ V, AZ @ V
        top = jacobi.eigh(AZ.T @ AZ, block).vectors
        found = jacobi.refined(AZ @ top, Z @ top)
        missed = jnp.linalg.norm(A.T @ _normalised(found.BV, found.values) - found.V * found.values, axis=0)
        return found, exact(found, missed), count + 1

    nothing = jacobi.Singular(jnp.zeros(block, A.dtype), start, jnp.zeros((width, block), A.dtype))
    found, done, _ = jax.lax.while_loop(
        lambda carry: ~carry[1] & (carry[2] <= RESTARTS), grown, (nothing, jnp.asarray(False), 0)
    )
    return found, done


def _whole(W: Float[Array, "width d"], r: IntLike, max_r: int) -> Spectra:
    """By all singular values, of W and of what is outside the span at once."""
    tall, both = W.shape[0] >= W.shape[1], jnp.stack([W, outside(W, r)])
    found = jax.vmap(jacobi.singular)(both if tall else jnp.swapaxes(both, 1, 2))
    own = jax.tree.map(lambda leaf: leaf[0], found)
    right = own.V if tall else _normalised(own.BV, own.values)
    return Spectra(*_angles(W, right, own.values, r, max_r), found.values[1, 0], jnp.asarray(True))


def _angles(
    W: Float[Array, "width d"], V: Float[Array, "d k"], sigma: Float[Array, " k"], r: IntLike, max_r: int
) -> tuple[Float[Array, " {max_r}"], Float[Array, ""]]:
    """sines2 and σ_r(WM) from the top right singular vectors, in columns."""
    V, sigma = columns(V, max_r), columns(sigma[None], max_r)[0]
    direction = jnp.arange(max_r) < r
    lacking = direction & ~(sigma > rounding_of(W, sigma[0]))
    off = outside(V.T, r).T * (direction & ~lacking)
    # A direction that W lacks has sine 1; a padded one has sine 0.
    sines2 = jacobi.eigh(off.T @ off + jnp.diag(lacking.astype(W.dtype))).values[::-1]
    inside = jacobi.singular(columns(W - outside(W, r), max_r)).values[r - 1]
    return sines2, jnp.where(inside > rounding_of(W, sigma[0]), inside, 0)


def outside(W: Float[Array, "rows d"], r: IntLike) -> Float[Array, "rows d"]:
    """W(I − MMᵀ)."""
    return jnp.where(jnp.arange(W.shape[1]) < r, 0, W)


def _gram(W: Float[Array, "width d"]) -> Float[Array, "side side"]:
    return W.T @ W if W.shape[0] >= W.shape[1] else W @ W.T


def _normalised(V: Float[Array, "n k"], sizes: Float[Array, " k"]) -> Float[Array, "n k"]:
    """Columns over their sizes; where those are zero, zero."""
    return V / jnp.where(sizes > 0, sizes, 1)


def rounding_of(W: Float[Array, "width d"], largest: Float[Array, ""]) -> Float[Array, ""]:
    """What a singular value of W must pass to be more than rounding beside the largest."""
    return largest * max(W.shape) * jnp.finfo(W.dtype).eps


def columns(W: Float[Array, "rows k"], n: int) -> Float[Array, "rows {n}"]:
    """The first n columns, zeros where there are fewer."""
    return jnp.pad(W[:, :n], ((0, 0), (0, max(0, n - W.shape[1]))))


def _orthonormal(Z: Float[Array, "d block"], K: Float[Array, "d k"]) -> Float[Array, "d block"]:
    """Orthonormal columns that span those of Z, orthogonal to K's, which are orthonormal or zero; a column that adds no
    direction becomes zero.
    """

    def column(j: IntLike, Q: Float[Array, "d block"]) -> Float[Array, "d block"]:
        before = jnp.where(jnp.arange(Q.shape[1]) < j, Q, 0)
        z = Q[:, j]
        size = jnp.linalg.norm(z)
        for _ in range(2):
            z = z - before @ (before.T @ z)
        left = jnp.linalg.norm(z)
        some = left > 1e3 * jnp.finfo(Q.dtype).eps * size
        return Q.at[:, j].set(jnp.where(some, z / jnp.where(some, left, 1), 0))

    def again(_: IntLike, Z: Float[Array, "d block"]) -> Float[Array, "d block"]:
        return jax.lax.fori_loop(0, Z.shape[1], column, Z - K @ (K.T @ Z))

    Z = jax.lax.fori_loop(0, 2, again, Z)
    # A column of rounding may have come back along K.
    Z = Z - K @ (K.T @ Z)
    size = jnp.linalg.norm(Z, axis=0)
    return jnp.where(size > 0.5, Z / jnp.where(size > 0.5, size, 1), 0)
