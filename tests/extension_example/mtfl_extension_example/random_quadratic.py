"""A task family: the sign of a random quadratic form of the orthant."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mtfl_jax.learning import draws
from mtfl_jax.learning.tasks import FAMILIES, Family

# Coefficients are multiples of 2^-14, so that sums of ±q below 2^10 are exact in float32 whatever their order.
_GRID = 2.0**14


def _pairs(r: int) -> tuple[np.ndarray, np.ndarray]:
    """(j, k) of all j <= k < r, those of fewer coordinates first."""
    pairs = np.asarray([(j, k) for k in range(r) for j in range(k + 1)])
    return pairs[:, 0], pairs[:, 1]


def _sample(key: Array, num_tasks: int, r: int | Array, max_r: int) -> Array:
    _, k = _pairs(max_r)
    q = jnp.round(draws.normal(key, len(k), num_tasks).T * _GRID) / _GRID
    return jnp.where(jnp.asarray(k) < r, q, 0)


def _labels(params: Array, z: Array) -> Array:
    j, k = _pairs(z.shape[1])
    value = jnp.matmul(z[:, j] * z[:, k], params.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.where(value >= 0, 1.0, -1.0).astype(z.dtype)


def _limit(r: int) -> np.ndarray:
    # Two values of the form are Gaussian; their correlation is that of the products of coordinates.
    z = 2.0 * ((np.arange(2**r)[:, None] >> np.arange(r)) & 1) - 1
    return 2 / math.pi * np.arcsin(np.clip(((z @ z.T) ** 2 + r) / (r**2 + r), -1, 1))


FAMILIES.register(
    Family("random_quadratic", "sign(Σ_{j≤k} q_jk z_j z_k), q_jk ~ N(0, 1)", _sample, _labels, limit=_limit)
)
