"""Eigenproblems of small symmetric matrices by Jacobi's rotations, of array operations alone.

A library's solver takes seconds to compile on a TPU; on a GPU it is forty times as fast and starts the rotations, which
then find what it lacks: the small eigenvalues of a graded matrix to their own rounding.

Source: Jacobi (1846) in the parallel order of Brent and Luk (1985); that it keeps the small eigenvalues of a graded
matrix, Demmel and Veselić (1992).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.custom_batching import custom_vmap
from jaxtyping import Bool, Float

from mtfl_jax.learning.scalars import IntLike

SWEEPS = 8
"""How often every pair of coordinates is rotated at most, an even number: enough for 128 of them in float32."""
ROUNDING = 2
"""Off-diagonal numbers that are left, in units of what rounds the diagonal's: rotations would add to their rounding."""


class Eigh(NamedTuple):
    """The largest eigenvalues, descending, and their eigenvectors, in columns."""

    values: Float[Array, " k"]
    vectors: Float[Array, "n k"]


def eigh(H: Float[Array, "n n"], k: int | None = None) -> Eigh:
    """The k (default: all) largest eigenpairs of a symmetric matrix; zeros where k is more than n."""
    n = H.shape[0]
    k, m = n if k is None else k, 2 * max(1, -(-n // 2))
    # What pads H has the least eigenvalue, and rotations leave it alone.
    least = jnp.diag(jnp.arange(m) >= n).astype(H.dtype) * (1 + jnp.trace(jnp.abs(H)))
    values, V = (found[0] for found in _rotated((jnp.pad(H, (0, m - n)) - least)[None]))
    i = jnp.arange(m)
    # By counting and not by sorting.
    before = (values > values[:, None]) | ((values == values[:, None]) & (i < i[:, None]))
    place = jnp.sum(before, axis=1)
    chosen = (place[:, None] == jnp.arange(k)).astype(H.dtype)
    V = (V.T @ chosen)[:n]
    # Of hundreds of rotations' rounding nothing stays: half a step of Newton's iteration to orthogonal columns, and
    # Rayleigh's quotients.
    V = 1.5 * V - V @ (V.T @ V) / 2
    return Eigh(jnp.sum(V * (H @ V), axis=0), V)


@custom_vmap
def _rotated(H: Float[Array, "lanes m m"]) -> tuple[Float[Array, "lanes m"], Float[Array, "lanes m m"]]:
    """Eigenvalues of each matrix, and eigenvectors in rows, in no order; m is even.

    A batch of batches is one batch, as the lanes stand last in memory: rows and columns turn alike there. It ends where
    no lane has anything to rotate; a lane that has nothing stays as it is, whatever the others do.
    """
    A, m = jnp.moveaxis(H, 0, -1), H.shape[-1]
    half, i = m // 2, np.arange(m)
    # Pairs are (i, half + i); the order turns all but the first coordinate, so that each meets each, and after m − 1
    # rounds each is where it was.
    turn = np.r_[0, half, 1 : half - 1, half + 1 : m, half - 1][:m] if half > 1 else i

    def small(*diagonals: Float[Array, "..."]) -> Float[Array, "..."]:
        first, second = (jnp.sqrt(jnp.abs(diagonal)) for diagonal in diagonals)
        return ROUNDING * jnp.finfo(H.dtype).eps * first * second

    def left(A: Float[Array, "m m lanes"]) -> Bool[Array, ""]:
        diagonal = A[i, i]
        return jnp.any((jnp.abs(A) > small(diagonal[:, None], diagonal)) & (i[:, None] != i)[..., None])

    def rotate(A: Float[Array, "m m lanes"], c: Array, s: Array, axis: int) -> Float[Array, "m m lanes"]:
        upper, lower = jnp.split(A, 2, axis)
        c, s = (jnp.expand_dims(of, 1 - axis) for of in (c, s))
        return jnp.take(jnp.concatenate([c * upper - s * lower, s * upper + c * lower], axis), turn, axis)

    def one_round(_: IntLike, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        A, V = carry
        diagonal, off = A[i, i], A[i[:half], i[half:]]
        first, second = diagonal[:half], diagonal[half:]
        tau = (second - first) / (2 * jnp.where(off == 0, 1, off))
        t = jnp.where(tau >= 0, 1, -1) / (jnp.abs(tau) + jnp.sqrt(1 + tau**2))
        t = jnp.where(jnp.abs(off) > small(first, second), t, 0)
        c = 1 / jnp.sqrt(1 + t**2)
        return rotate(rotate(A, c, t * c, 0), c, t * c, 1), rotate(V, c, t * c, 0)

    def sweeps(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        A, V, _, count = carry
        # Two sweeps and two rounds a turn, so that no loop copies its arrays.
        A, V = jax.lax.fori_loop(0, 2 * (m - 1), one_round, (A, V), unroll=2)
        return A, V, left(A), count + 1

    V = jnp.broadcast_to(jnp.eye(m, dtype=H.dtype)[..., None], A.shape)
    start = A, V, left(A), jnp.asarray(0)
    A, V, *_ = jax.lax.while_loop(lambda carry: (carry[3] < SWEEPS // 2) & carry[2], sweeps, start)
    return jnp.moveaxis(A[i, i], -1, 0), jnp.moveaxis(V, -1, 0)


@_rotated.def_vmap
def _(
    size: int, mapped: list[bool], H: Float[Array, "size lanes m m"]
) -> tuple[tuple[Float[Array, "size lanes m"], Float[Array, "size lanes m m"]], tuple[bool, bool]]:
    assert mapped == [True]
    values, V = _rotated(H.reshape(-1, *H.shape[2:]))
    return (values.reshape(*H.shape[:3]), V.reshape(H.shape)), (True, True)


def started(B: Float[Array, "m n"]) -> Float[Array, "n n"]:
    """V with orthonormal columns for which those of BV are as good as orthogonal, where a library finds them fast for a
    batch; elsewhere the identity.
    """
    return jax.lax.platform_dependent(B, cuda=by_library, default=lambda B: jnp.eye(B.shape[1], dtype=B.dtype))


def by_library(B: Float[Array, "m n"]) -> Float[Array, "n n"]:
    """Eigenvectors of B's Gram matrix: right singular vectors of B to the rounding of the largest eigenvalue."""
    return jnp.linalg.eigh(B.T @ B)[1]


class Singular(NamedTuple):
    """Singular values of B, descending, right singular vectors V in columns, and BV."""

    values: Float[Array, " k"]
    V: Float[Array, "n k"]
    BV: Float[Array, "m k"]


def singular(B: Float[Array, "m n"]) -> Singular:
    """Of all columns of B, to its own rounding and not to that of its Gram matrix.

    The columns of BV, by the Gram matrix's V, are orthogonal up to small angles; what is left is a second problem,
    graded by their sizes, whose eigenvalues Jacobi's rotations find to relative accuracy.
    """

    def turned(_: IntLike, V: Float[Array, "n n"]) -> Float[Array, "n n"]:
        BV = B @ V
        return V @ eigh(BV.T @ BV).vectors

    # A loop of two turns, so that rotations are compiled once.
    V = jax.lax.fori_loop(0, 2, turned, started(B))
    return Singular(jnp.linalg.norm(B @ V, axis=0), V, B @ V)


def refined(BV: Float[Array, "m k"], V: Float[Array, "n k"]) -> Singular:
    """Of columns BV that are nearly orthogonal."""
    turn = eigh(BV.T @ BV).vectors
    BV = BV @ turn
    return Singular(jnp.linalg.norm(BV, axis=0), V @ turn, BV)
