"""An input law: Laplace coordinates."""

import math

import jax.numpy as jnp
from jax import Array

from mtfl_jax.learning import draws
from mtfl_jax.learning.data import LAWS, Law


def _draw(key: Array, d: int, n: int | Array) -> Array:
    # Uniform on the odd multiples of 2^-24 in (−1, 1), which float32 has exactly.
    u = 2 * draws.uniform(key, d, n) - 1 + 2.0**-24
    return -jnp.sign(u) * jnp.log1p(-jnp.abs(u)) / math.sqrt(2)


LAWS.register(Law("laplace", "x_k independent of density e^(−√2 |x|)/√2", _draw, seconds=8e-9))
