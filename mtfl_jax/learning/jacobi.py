"""Eigenproblems of small symmetric matrices by Jacobi's rotations, of array operations alone.

A library's solver works through a batch of them one after the other, on a GPU, and takes seconds to compile on a TPU.

Source: Jacobi (1846) in the parallel order of Brent and Luk (1985); that it keeps the small eigenvalues of a graded
matrix, Demmel and Veselić (1992).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from mtfl_jax.learning.scalars import IntLike

SWEEPS = 8
"""How often every pair of coordinates is rotated: enough for 128 of them in float32."""


class Eigh(NamedTuple):
    """The largest eigenvalues, descending, and their eigenvectors, in columns."""

    values: Float[Array, " k"]
    vectors: Float[Array, "n k"]


def eigh(H: Float[Array, "n n"], k: int | None = None) -> Eigh:
    """The k (default: all) largest eigenpairs of a symmetric matrix; zeros where k is more than n."""
    n = H.shape[0]
    k, half = n if k is None else k, max(1, -(-max(n, 1) // 2))
    # What pads H has the least eigenvalue, and rotations leave it alone.
    least = jnp.diag(jnp.arange(2 * half) >= n).astype(H.dtype) * (1 + jnp.trace(jnp.abs(H)))
    padded = jnp.pad(H, (0, 2 * half - n)) - least
    # Pairs are (i, half + i); the order turns all but the first coordinate, so that each meets each.
    turn = np.r_[0, half, 1 : half - 1, half + 1 : 2 * half, half - 1][: 2 * half] if half > 1 else np.arange(2)

    def rotate(rows: Float[Array, "m m"], c: Float[Array, "_ 1"], s: Float[Array, "_ 1"]) -> Float[Array, "m m"]:
        upper, lower = rows[:half], rows[half:]
        return jnp.concatenate([c * upper - s * lower, s * upper + c * lower])[turn]

    def one_round(_: IntLike, carry: tuple[Float[Array, "m m"], Float[Array, "m m"]]) -> tuple[Array, Array]:
        A, V = carry
        diagonal, off = jnp.diag(A), jnp.diag(A[:half, half:])
        tau = (diagonal[half:] - diagonal[:half]) / (2 * jnp.where(off == 0, 1, off))
        t = jnp.where(tau >= 0, 1, -1) / (jnp.abs(tau) + jnp.sqrt(1 + tau**2))
        # What is rounding already is left: rotations would add to that of V.
        small = jnp.finfo(H.dtype).eps / 4 * jnp.sqrt(jnp.abs(diagonal[:half])) * jnp.sqrt(jnp.abs(diagonal[half:]))
        t = jnp.where(jnp.abs(off) <= small, 0, t)
        c = 1 / jnp.sqrt(1 + t**2)
        turned = functools.partial(rotate, c=c[:, None], s=(t * c)[:, None])
        return turned(turned(A).T), turned(V)

    A, V = jax.lax.fori_loop(0, SWEEPS * (2 * half - 1), one_round, (padded, jnp.eye(2 * half, dtype=H.dtype)))
    values, i = jnp.diag(A), jnp.arange(2 * half)
    # By counting and not by sorting.
    before = (values > values[:, None]) | ((values == values[:, None]) & (i < i[:, None]))
    place = jnp.sum(before, axis=1)
    chosen = (place[:, None] == jnp.arange(k)).astype(H.dtype)
    V = (V.T @ chosen)[:n]
    # Of hundreds of rotations' rounding nothing stays: half a step of Newton's iteration to orthogonal columns, and
    # Rayleigh's quotients.
    V = 1.5 * V - V @ (V.T @ V) / 2
    return Eigh(jnp.sum(V * (H @ V), axis=0), V)


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
    V = jax.lax.fori_loop(0, 2, turned, jnp.eye(B.shape[1], dtype=B.dtype))
    return Singular(jnp.linalg.norm(B @ V, axis=0), V, B @ V)


def refined(BV: Float[Array, "m k"], V: Float[Array, "n k"]) -> Singular:
    """Of columns BV that are nearly orthogonal."""
    turn = eigh(BV.T @ BV).vectors
    BV = BV @ turn
    return Singular(jnp.linalg.norm(BV, axis=0), V @ turn, BV)
