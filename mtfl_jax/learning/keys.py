"""Random keys: every draw is a function of the seed and of what the draw is for.

A key never depends on a cell's position in a grid, on padding or on the process. Draws that fill an
axis give each index a key of its own (`indexed`), so the draws for a smaller size are the first of
those for a larger one.
"""

import zlib

import jax
import jax.numpy as jnp
from jax import Array

SCHEMA = 1
"""Number of the present scheme of draws: it changes whenever the same seed gives other numbers."""


def root(seed: int | Array) -> Array:
    """A key of a seed (an integer in [0, 2^31), traced or not) to derive others from by hand."""
    return jax.random.key(seed, impl="threefry2x32")


def stream(seed: int | Array, purpose: str) -> Array:
    """The key of a seed for one named purpose: the pair of the purpose's hash and the seed, at no cost."""
    words = jnp.asarray([zlib.crc32(purpose.encode()), 0], jnp.uint32).at[1].set(jnp.asarray(seed).astype(jnp.uint32))
    return jax.random.wrap_key_data(words, impl="threefry2x32")


def named(key: Array, purpose: str) -> Array:
    """The key for one named purpose."""
    return jax.random.fold_in(key, zlib.crc32(purpose.encode()))


def indexed(key: Array, n: int) -> Array:
    """n keys, shape (n,); the i-th depends on `key` and i alone."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(n))
