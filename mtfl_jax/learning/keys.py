"""Random keys: every draw is a function of the seed and of what the draw is for.

A key never depends on a cell's position in a grid, on padding or on the process. What is drawn from it is in
`draws`.
"""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Integer, Key, UInt32

from mtfl_jax.learning.scalars import IntLike

SCHEMA = 2
"""Number of the present scheme of draws, a column of every table: it changes whenever the same seed gives other
numbers. 2: Threefry by counter, 64 signs or four Box–Muller normals a call (`draws`).
"""


def root(seed: IntLike) -> Key[Array, ""]:
    """A key of a seed (an integer in [0, 2^31), traced or not) to derive others from by hand."""
    return jax.random.key(seed, impl="threefry2x32")


def stream(seed: IntLike, purpose: str) -> Key[Array, ""]:
    """The key of a seed for one named purpose: the pair of the purpose's hash and the seed, at no cost."""
    words = jnp.asarray([zlib.crc32(purpose.encode()), 0], jnp.uint32).at[1].set(jnp.asarray(seed).astype(jnp.uint32))
    return jax.random.wrap_key_data(words, impl="threefry2x32")


def named(key: Key[Array, ""], purpose: str) -> Key[Array, ""]:
    """The key for one named purpose."""
    return _derived(key, _NAMED, np.uint32(zlib.crc32(purpose.encode())))


def at(key: Key[Array, ""], i: IntLike | Integer[Array, " n"]) -> Key[Array, "*n"]:
    """The i-th key derived from `key`; of an array i, as many."""
    return _derived(key, _INDEXED, jnp.asarray(i).astype(jnp.uint32))


def indexed(key: Key[Array, ""], n: int) -> Key[Array, " {n}"]:
    """n keys; the i-th depends on `key` and i alone."""
    return at(key, jnp.arange(n))


# First counters of derived keys; those of draws are row numbers, which stay below.
_NAMED, _INDEXED = np.uint32(2**32 - 2), np.uint32(2**32 - 1)


def _derived(key: Key[Array, ""], x: np.uint32, y: np.uint32 | UInt32[Array, "*n"]) -> Key[Array, "*n"]:
    return jax.random.wrap_key_data(jnp.moveaxis(threefry(key, x, y), 0, -1), impl="threefry2x32")


_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


def threefry(
    key: Key[Array, ""], x: np.uint32 | UInt32[Array, "*#shape"], y: np.uint32 | UInt32[Array, "*#shape"]
) -> UInt32[Array, " 2 *shape"]:
    """Threefry-2x32-20 of counters (x, y): two uniform words each. Salmon et al., SC 2011."""
    # The function of jax.random, which a CPU computes in a loop over the rounds: unrolled it takes a fifth of the time.
    k0, k1 = jax.random.key_data(key)
    schedule = (k0, k1, k0 ^ k1 ^ _PARITY)
    first, second = jnp.asarray(x) + k0, jnp.asarray(y) + k1
    for i in range(5):
        for by in _ROTATIONS[i % 2]:
            first = first + second
            second = first ^ ((second << np.uint32(by)) | (second >> np.uint32(32 - by)))
        first = first + schedule[(i + 1) % 3]
        second = second + (schedule[(i + 2) % 3] + np.uint32(i + 1))
    # A compiler that copies the rounds into each of their uses doubles them with every round.
    return jax.lax.optimization_barrier(jnp.stack((first, second)))
