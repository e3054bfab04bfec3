"""Random numbers by counter: entry (row, column) of a draw is a function of the key, the row and the column.

So the draws of fewer rows or columns are the first of those of more, columns may be asked for in any order, and
batching changes nothing. A call of Threefry gives 64 bits, of which a normal takes 16 and a sign one.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Integer, Key, Num, UInt32

from mtfl_jax.learning import keys
from mtfl_jax.learning.scalars import IntLike

SHUFFLES = 4
"""Pairs of rounds of `shuffled`; more change its orders of few by less than 400,000 of them show."""
SIDE = 8
"""Least side of its table: on smaller ones so many rounds do not mix."""
Columns = int | Integer[Array, " columns"]
"""How many columns, or which."""


def words(key: Key[Array, ""], rows: int, columns: Columns) -> UInt32[Array, "2 {rows} columns"]:
    """The two uniform 32-bit words of each (row, column)."""
    column = (jnp.arange(columns) if isinstance(columns, int) else columns).astype(jnp.uint32)
    return keys.threefry(key, jnp.arange(rows, dtype=jnp.uint32)[:, None], column[None, :])


def bits(key: Key[Array, ""], rows: int, columns: Columns) -> UInt32[Array, "{rows} columns"]:
    """Uniform 32-bit words."""
    return _interleaved(list(words(key, -(-rows // 2), columns)), rows)


def uniform(key: Key[Array, ""], rows: int, columns: Columns) -> Float[Array, "{rows} columns"]:
    """Uniform on [0, 1), multiples of 2^-24."""
    return (bits(key, rows, columns) >> 8).astype(jnp.result_type(float)) * 2.0**-24


def sign(key: Key[Array, ""], rows: int, columns: Columns) -> Float[Array, "{rows} columns"]:
    """Uniform on {±1}, 64 rows a call."""
    pair = jnp.moveaxis(words(key, -(-rows // 64), columns), 0, 1)
    each = (pair[:, :, None, :] >> jnp.arange(32, dtype=jnp.uint32)[:, None]) & 1
    flat = each.reshape(-1, each.shape[-1])[:rows]
    return 2 * flat.astype(jnp.result_type(float)) - 1


def normal(key: Key[Array, ""], rows: int, columns: Columns) -> Float[Array, "{rows} columns"]:
    """Standard normal, four rows a call, at most 5.4 in size.

    Each word gives two by the transform of Box and Muller (1958), 20 bits to the radius and 12 to the angle.
    """
    first, second = words(key, -(-rows // 4), columns)
    return _interleaved((*_pair(first), *_pair(second)), rows)


def shuffled(key: Key[Array, ""], n: IntLike, at: Integer[Array, " k"]) -> Integer[Array, " k"]:
    """Entries `at` of a random order of range(n), n < 2^24, without the others; those from n on are themselves.

    A table of a × b cells, a ≈ b, that hardly exceeds n is permuted by rounds that add to the row a random function of
    the column and to the column one of the row; what falls beyond n goes round again. Source: Black and Rogaway,
    Ciphers with Arbitrary Finite Domains (2002), their generalised Feistel cipher, here with Threefry for its rounds.
    """
    n = jnp.asarray(n)
    a = jnp.maximum(jnp.ceil(jnp.sqrt(n.astype(jnp.float32))).astype(n.dtype), SIDE)
    b = jnp.maximum((n + a - 1) // a, SIDE)

    each = keys.at(key, jnp.arange(2 * SHUFFLES)).reshape(SHUFFLES, 2)

    def added(i: Integer[Array, " k"], pair: Key[Array, " 2"]) -> tuple[Integer[Array, " k"], None]:
        row, column = i // b, i % b
        row = (row + _below(pair[0], column, a)) % a
        return row * b + (column + _below(pair[1], row, b)) % b, None

    def again(state: tuple[Integer[Array, " k"], Bool[Array, " k"]]) -> tuple[Integer[Array, " k"], Bool[Array, " k"]]:
        i, out = state
        i = jnp.where(out, jax.lax.scan(added, i, each)[0], i)
        return i, i >= n

    inside = at < n
    found, _ = jax.lax.while_loop(lambda state: jnp.any(inside & state[1]), again, (at, inside))
    return jnp.where(inside, found, at)


def _below(key: Key[Array, ""], of: Integer[Array, " k"], n: Integer[Array, ""]) -> Integer[Array, " k"]:
    """A random function of integers into range(n), of 32 bits and so uniform but for n/2^32."""
    return (words(key, 1, of)[0, 0] % n.astype(jnp.uint32)).astype(n.dtype)


def _pair(word: UInt32[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    real = jnp.result_type(float)
    radius = jnp.sqrt(-2 * jnp.log(((word >> 12).astype(real) + 0.5) * 2.0**-20))
    # An angle in (−π/4, π/4) by 10 bits; the other two mirror it into the other quarters.
    t = ((word & 1023).astype(real) - 511.5) * (np.pi / 2048)
    t2 = t * t
    sine = t * (1 - t2 / 6 * (1 - t2 / 20 * (1 - t2 / 42 * (1 - t2 / 72))))
    cosine = 1 - t2 / 2 * (1 - t2 / 12 * (1 - t2 / 30 * (1 - t2 / 56 * (1 - t2 / 90))))
    mirrored, signed = (word >> 10) & 1 == 1, jnp.where((word >> 11) & 1 == 1, -radius, radius)
    return jnp.where(mirrored, sine, cosine) * signed, jnp.where(mirrored, cosine, sine) * signed


def _interleaved(parts: Sequence[Num[Array, "k columns"]], rows: int) -> Num[Array, "{rows} columns"]:
    """parts of k rows each, the i-th row of every part in turn: the first `rows`."""
    return jnp.stack(parts, axis=1).reshape(-1, parts[0].shape[-1])[:rows]
