"""Task families: binary labels y_t = f_t(z) of the orthant z = sign(Mᵀx) in {±1}^r.

Families drawn as truth tables (`balanced`, `uniform`) hold the 2^r values of each task, indexed by orthant
little-endian (bit k set when z_k = +1). Families with a formula (`halfspace`, `parity`, `majority`) hold one
number per (task, coordinate) and work for any r. Task t depends on the key and t alone.

Source: the families are ours; the abstract of arXiv 2307.06887 says only that the labels of all tasks depend
on the same r directions.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from mtfl_jax.learning import draws, keys

MAX_TABLE_R = 16
"""Largest r for which a family may hold a truth table of 2^r values a task."""

# Weights of a halfspace are multiples of 2^-16: sums of ±v_k are then exact in float32 below 2^8, whatever
# their order, and so labels do not depend on padding or on the backend.
_HALFSPACE_GRID = 2.0**16

# Tables of more values than this are sorted to be drawn and looked up to be read. Comparing all values of a shorter
# one, and multiplying it by the orthants' indicators, is exact too and several times as fast.
_LOOKED_UP = 64


@struct.dataclass
class Tasks:
    """Tasks of one family. `params`: (T, 2^r) values ±1 for a table family, else (T, r) weights or members."""

    family: str = struct.field(pytree_node=False)
    params: Array


def needs_table(family: str) -> bool:
    """Whether a task of the family is a table of 2^r values, so that r is at most MAX_TABLE_R."""
    return family in ("balanced", "uniform")


def _ranks(u: Array) -> Array:
    """The rank of each entry of u (…, k) within its row; equal entries rank in order."""
    k = jnp.arange(u.shape[-1])
    if len(k) > _LOOKED_UP:
        return jnp.argsort(jnp.argsort(u, axis=-1), axis=-1)
    before = (u[..., None, :] < u[..., :, None]) | ((u[..., None, :] == u[..., :, None]) & (k < k[:, None]))
    return jnp.sum(before, axis=-1)


# Each gives the params of all tasks, (num_tasks, …).


def _balanced(key: Array, num_tasks: int, r: int | Array, max_r: int, size: int | Array) -> Array:
    u = jnp.where(jnp.arange(2**max_r) < 2**r, draws.uniform(key, 2**max_r, num_tasks).T, jnp.inf)
    return jnp.where(_ranks(u) < 2**r // 2, 1, -1)


def _uniform(key: Array, num_tasks: int, r: int | Array, max_r: int, size: int | Array) -> Array:
    return jnp.where(draws.uniform(key, 2**max_r, num_tasks).T < 0.5, 1, -1)


def _halfspace(key: Array, num_tasks: int, r: int | Array, max_r: int, size: int | Array) -> Array:
    v = jnp.round(draws.normal(key, max_r, num_tasks).T * _HALFSPACE_GRID) / _HALFSPACE_GRID
    return jnp.where(jnp.arange(max_r) < r, v, 0)


def _parity(key: Array, num_tasks: int, r: int | Array, max_r: int, size: int | Array) -> Array:
    k = jnp.arange(max_r)
    # Bit i of the words is the i-th try at a uniform subset; the first non-empty one counts (32 empty tries in
    # a row, of probability 2^(-32 r), give {0}).
    words = jnp.where(k < r, draws.bits(keys.named(key, "subset"), max_r, num_tasks).T, 0)
    tries = jnp.bitwise_or.reduce(words, axis=1, keepdims=True)
    first = jnp.where(tries == 0, 0, jax.lax.population_count((tries & -tries) - 1))
    any_size = jnp.where(tries == 0, k == 0, (words >> first) & 1 == 1)
    u = jnp.where(k < r, draws.uniform(keys.named(key, "order"), max_r, num_tasks).T, jnp.inf)
    of_size = _ranks(u) < size
    return jnp.where(jnp.asarray(size) > 0, of_size, any_size)


def _majority(key: Array, num_tasks: int, r: int | Array, max_r: int, size: int | Array) -> Array:
    k = jnp.arange(max_r)
    member = (draws.uniform(key, max_r, num_tasks).T < 0.5) & (k < r)
    # Toggling coordinate 0 maps the even subsets onto the odd ones, so odd subsets stay uniform.
    return member ^ ((k == 0) & (member.sum(axis=1, keepdims=True) % 2 == 0))


_SAMPLERS = {
    "balanced": _balanced,
    "uniform": _uniform,
    "halfspace": _halfspace,
    "parity": _parity,
    "majority": _majority,
}
FAMILIES = tuple(_SAMPLERS)


def sample(
    key: Array,
    family: str,
    num_tasks: int,
    *,
    r: int | Array,
    max_r: int | None = None,
    size: int | Array = 0,
) -> Tasks:
    """Draw `num_tasks` independent tasks on r coordinates.

    `balanced`: uniform over the f with Σ_z f(z) = 0; `uniform`: over all 2^(2^r) functions; `halfspace`:
    sign(v·z), v ~ N(0, I_r); `parity`: of a subset, uniform over the non-empty ones (size 0) or over those of
    `size` elements; `majority`: of a subset of odd size, uniform over those.
    `max_r` (default r, needed where r is traced) is the padded number of coordinates.
    Raises ValueError where a table of 2^max_r values does not fit (max_r > MAX_TABLE_R).
    """
    max_r = int(r) if max_r is None else max_r
    if needs_table(family) and max_r > MAX_TABLE_R:
        raise ValueError(f"r={max_r}: {family} tasks hold a table of 2^r values; allowed: r <= {MAX_TABLE_R}")
    params = _SAMPLERS[family](key, num_tasks, r, max_r, size)
    return Tasks(family, params.astype(jnp.result_type(float)))


def orthant_index(z: Array) -> Array:
    """Little-endian index of each orthant: z (n, r) in {±1}, 0 in unused columns -> (n,) integers."""
    return jnp.sum((z > 0) * 2 ** jnp.arange(z.shape[-1]), axis=-1)


def labels(tasks: Tasks, z: Array) -> Array:
    """Labels y_t = f_t(z): z (n, r) -> (n, T) in {±1}."""
    dot = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    if needs_table(tasks.family):
        index, orthants = orthant_index(z), tasks.params.shape[1]
        if orthants > _LOOKED_UP:
            return jnp.take(tasks.params, index, axis=1).T
        return dot((index[:, None] == jnp.arange(orthants)).astype(z.dtype), tasks.params.T)
    if tasks.family == "parity":
        negative = dot((z < 0).astype(z.dtype), tasks.params.T)
        return 1 - 2 * (negative % 2)
    return jnp.where(dot(z, tasks.params.T) >= 0, 1.0, -1.0).astype(z.dtype)


def all_orthants(r: int | Array, max_r: int | None = None) -> Array:
    """Every orthant in index order: (2^max_r, max_r) in {±1}, zero in the columns from r on."""
    max_r = int(r) if max_r is None else max_r
    z = 2.0 * ((jnp.arange(2**max_r)[:, None] >> jnp.arange(max_r)) & 1) - 1
    return jnp.where(jnp.arange(max_r) < r, z, 0)


def truth_tables(tasks: Tasks, r: int | Array, max_r: int | None = None) -> Array:
    """Values of each task at every orthant, (T, 2^max_r); orthants that r does not have are zero."""
    z = all_orthants(r, max_r)
    return jnp.where(jnp.arange(z.shape[0]) < 2**r, labels(tasks, z).T, 0)


def contrastive_kernel(tables: Array, num_tasks: int | Array | None = None) -> Array:
    """K = (1/T) Σ_t f_t f_tᵀ of truth tables (T, 2^r): (2^r, 2^r). Rows of tasks from `num_tasks` on must be zero."""
    return tables.T @ tables / (tables.shape[0] if num_tasks is None else num_tasks)


def kernel_limit(family: str, r: int, size: int = 0) -> np.ndarray:
    """K as T → ∞, the expectation over one task of the family: (2^r, 2^r) float64.

    Closed forms for `balanced` and `parity` of any non-empty subset ((I − 11ᵀ/2^r)·2^r/(2^r − 1)), `uniform` (I)
    and `halfspace` ((2/π) arcsin(z·z'/r)); a sum over the subsets for `majority` and for `parity` of a given size.
    """
    m = 2**r
    z = 2.0 * ((np.arange(m)[:, None] >> np.arange(r)) & 1) - 1
    if family == "uniform":
        return np.eye(m)
    if family == "halfspace":
        return 2 / math.pi * np.arcsin(np.clip(z @ z.T / r, -1, 1))
    if family == "balanced" or (family == "parity" and size == 0):
        return (np.eye(m) - 1 / m) * m / (m - 1)
    if family == "parity":
        members = [np.prod(z[:, list(s)], axis=1) for s in itertools.combinations(range(r), size)]
    elif family == "majority":
        odd = [s for k in range(1, r + 1, 2) for s in itertools.combinations(range(r), k)]
        members = [np.sign(z[:, list(s)].sum(axis=1)) for s in odd]
    else:
        raise ValueError(f"family={family!r}: allowed: {', '.join(FAMILIES)}")
    tables = np.stack(members)
    return tables.T @ tables / len(tables)
