"""Task families: labels y_t = f_t(z) of the orthant z = sign(Mᵀx) in {±1}^r, or f_t(u) of u = Mᵀx itself.

Families drawn as truth tables (`balanced`, `uniform`) hold the 2^r values of each task, indexed by orthant
little-endian (bit k set when z_k = +1). Families with a formula (`halfspace`, `parity`, `majority`) hold one
number per (task, coordinate) and work for any r. Task t depends on the key and t alone. Labels are ±1, or real
(`targets`).

Source: the families are ours; the abstract of arXiv 2307.06887 says only that the labels of all tasks depend
on the same r directions.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jaxtyping import Bool, Float, Float64, Int, Key, Real, Shaped

from mtfl_jax.fields import ConfigError, Field, Rule, View, integer_or, rule
from mtfl_jax.learning import data, draws, kernel_limits, keys, targets
from mtfl_jax.learning.scalars import IntLike, RealLike
from mtfl_jax.records import Registry

MAX_TABLE_R = 16
"""Largest r for which a family may hold a truth table of 2^r values a task."""

# Weights of a halfspace are multiples of 2^-16: sums of ±v_k are then exact in float32 below 2^8, whatever
# their order, and so labels do not depend on padding or on the backend.
_HALFSPACE_GRID = 2.0**16


@struct.dataclass
class Tasks:
    """Tasks of one family. `params`: 2^r values a task for a table family, else what its labels are made of. `scale`:
    what real labels are multiplied by.
    """

    family: str = struct.field(pytree_node=False)
    params: Float[Array, "*batch T _"]
    scale: float | Float[Array, "*batch"] = 1.0


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of tasks.

    sample(key, num_tasks, r, max_r, **settings): the params of all tasks, of which the first depend on no later one
    and, where r is below max_r, not on max_r. labels(params, z): y of orthants z, which are zero beyond r. real: y is
    real, with E y² = 1, else ±1. signs: labels depend on the orthant alone; else they are given u in the place of z.
    limit(r, **settings): K as T → ∞, the expectation over one task; None where it is not known. table: a task is a
    table of 2^r values, so that r is at most MAX_TABLE_R. common: sample takes a key `common` too, which is the same
    for the trained tasks and the downstream one.
    """

    name: str
    doc: str
    sample: Callable[..., Shaped[Array, "T _"]]
    labels: Callable[[Float[Array, "T _"], Float[Array, "n max_r"]], Float[Array, "n T"]]
    limit: Callable[..., Float64[np.ndarray, "orthants orthants"]] | None = None
    table: bool = False
    real: bool = False
    signs: bool = True
    common: bool = False
    settings: tuple[Field, ...] = ()
    uses: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()

    @property
    def tabular(self) -> bool:
        """Whether a task is a table of ±1 over the orthants, which is what moments and limits are of."""
        return self.signs and not self.real


FAMILIES: Registry[Family] = Registry("tasks")


def _balanced(key: Key[Array, ""], num_tasks: int, r: IntLike, max_r: int) -> Int[Array, "{num_tasks} {2**max_r}"]:
    u = jnp.where(jnp.arange(2**max_r) < 2**r, draws.uniform(key, 2**max_r, num_tasks).T, jnp.inf)
    return jnp.where(targets.ranks(u) < 2**r // 2, 1, -1)


def _uniform(key: Key[Array, ""], num_tasks: int, r: IntLike, max_r: int) -> Int[Array, "{num_tasks} {2**max_r}"]:
    return jnp.where(draws.uniform(key, 2**max_r, num_tasks).T < 0.5, 1, -1)


def _halfspace(key: Key[Array, ""], num_tasks: int, r: IntLike, max_r: int) -> Float[Array, "{num_tasks} {max_r}"]:
    v = jnp.round(draws.normal(key, max_r, num_tasks).T * _HALFSPACE_GRID) / _HALFSPACE_GRID
    return jnp.where(jnp.arange(max_r) < r, v, 0)


def _parity(
    key: Key[Array, ""], num_tasks: int, r: IntLike, max_r: int, parity_size: IntLike
) -> Bool[Array, "{num_tasks} {max_r}"]:
    k = jnp.arange(max_r)
    # Bit i of the words is the i-th try at a uniform subset; the first non-empty one counts (32 empty tries in
    # a row, of probability 2^(-32 r), give {0}).
    words = jnp.where(k < r, draws.bits(keys.named(key, "subset"), max_r, num_tasks).T, 0)
    tries = jnp.bitwise_or.reduce(words, axis=1, keepdims=True)
    first = jnp.where(tries == 0, 0, jax.lax.population_count((tries & -tries) - 1))
    any_size = jnp.where(tries == 0, k == 0, (words >> first) & 1 == 1)
    u = jnp.where(k < r, draws.uniform(keys.named(key, "order"), max_r, num_tasks).T, jnp.inf)
    of_size = targets.ranks(u) < jnp.where(jnp.asarray(parity_size) < 0, r, parity_size)
    return jnp.where(jnp.asarray(parity_size) == 0, any_size, of_size)


def _majority(key: Key[Array, ""], num_tasks: int, r: IntLike, max_r: int) -> Bool[Array, "{num_tasks} {max_r}"]:
    k = jnp.arange(max_r)
    member = (draws.uniform(key, max_r, num_tasks).T < 0.5) & (k < r)
    # Toggling coordinate 0 maps the even subsets onto the odd ones, so odd subsets stay uniform.
    return member ^ ((k == 0) & (member.sum(axis=1, keepdims=True) % 2 == 0))


def orthant_index(z: Real[Array, "*n r"]) -> Int[Array, "*n"]:
    """Little-endian index of each orthant: z in {±1}, 0 in unused columns."""
    return jnp.sum((z > 0) * 2 ** jnp.arange(z.shape[-1]), axis=-1)


def _table_labels(params: Float[Array, "T orthants"], z: Float[Array, "n r"]) -> Float[Array, "n T"]:
    index, orthants = orthant_index(z), params.shape[1]
    if orthants > targets.LOOKED_UP:
        return jnp.take(params, index, axis=1).T
    return targets.dot((index[:, None] == jnp.arange(orthants)).astype(z.dtype), params.T)


def _sign_labels(params: Float[Array, "T r"], z: Float[Array, "n r"]) -> Float[Array, "n T"]:
    return jnp.where(targets.dot(z, params.T) >= 0, 1.0, -1.0).astype(z.dtype)


def _parity_limit(r: int, parity_size: int) -> kernel_limits.Kernel:
    return kernel_limits.parity(r if parity_size < 0 else parity_size)(r)


@rule("parity_size", "r")
def _size_at_most_r(c: View) -> None:
    if isinstance(c.parity_size, int) and c.parity_size > c.r:
        raise ConfigError("parity_size", c.parity_size, f"allowed: any, all, or an integer from 1 to r={c.r}")


FAMILIES.register(
    Family(
        "balanced",
        "uniform over the f with Σ_z f(z) = 0",
        _balanced,
        _table_labels,
        limit=kernel_limits.LIMITS["balanced"],
        table=True,
    )
)
FAMILIES.register(
    Family(
        "uniform",
        "uniform over all 2^(2^r) functions",
        _uniform,
        _table_labels,
        limit=kernel_limits.LIMITS["uniform"],
        table=True,
    )
)
FAMILIES.register(
    Family("halfspace", "sign(v·z), v ~ N(0, I_r)", _halfspace, _sign_labels, limit=kernel_limits.LIMITS["halfspace"]),
)
FAMILIES.register(
    Family(
        "parity",
        "product over a subset, uniform over the non-empty ones or over those of parity_size elements",
        _parity,
        targets.parity_labels,
        limit=_parity_limit,
        settings=(
            Field(
                "parity_size",
                "knob",
                integer_or(1, {"any": 0, "all": -1}),
                "coordinates of each parity task",
            ),
        ),
        rules=(_size_at_most_r,),
    )
)
FAMILIES.register(
    Family(
        "majority",
        "majority over a subset of odd size, uniform over those",
        _majority,
        _sign_labels,
        kernel_limits.LIMITS["majority"],
    )
)
FAMILIES.register(
    Family(
        "single_index",
        "Σ_k c_k he_k(u·v), v a unit vector, c the hermite_k over their length",
        targets.single_index,
        targets.index_labels,
        real=True,
        signs=False,
        settings=(*targets.HERMITE, targets.DIRECTIONS),
        rules=(targets.some_hermite,),
    )
)
FAMILIES.register(
    Family(
        "multi_index",
        "Σ_i Σ_k c_k he_k(u·v_i)/√I + c Π_i u·v_i over I = indices orthonormal v_i",
        targets.multi_index,
        targets.index_labels,
        real=True,
        signs=False,
        settings=(*targets.HERMITE, targets.PRODUCT, targets.DIRECTIONS, targets.INDICES),
        rules=(targets.indices_fit,),
    )
)
FAMILIES.register(
    Family(
        "teacher",
        "a two-layer ReLU network of u with teacher_units units, teacher_shared of them those of all tasks",
        targets.teacher,
        targets.teacher_labels,
        real=True,
        signs=False,
        common=True,
        settings=(targets.UNITS, targets.SHARED, targets.FEATURES),
        rules=(targets.shared_fit, targets.features_fit),
    )
)
for _name, _doc, _sample, _labels, _table in (
    (
        "staircase",
        "(z_1 + z_1 z_2 + … + z_1⋯z_D)/√D of a random order of the coordinates, D = degree",
        targets.staircase,
        targets.staircase_labels,
        False,
    ),
    (
        "monomial",
        "the product of `degree` random coordinates of z, as a real label",
        targets.monomial,
        targets.parity_labels,
        False,
    ),
    (
        "polynomial",
        "a random multilinear polynomial of z of at most that degree, its coefficients normal",
        targets.polynomial,
        _table_labels,
        True,
    ),
):
    FAMILIES.register(
        Family(
            _name,
            _doc,
            _sample,
            _labels,
            table=_table,
            real=True,
            settings=(targets.DEGREE,),
            rules=(targets.degree_fits,),
        )
    )


def sample(
    key: Key[Array, ""],
    family: str,
    num_tasks: int,
    *,
    r: IntLike,
    max_r: int | None = None,
    common: Key[Array, ""] | None = None,
    scale: RealLike = 1.0,
    **settings: Any,
) -> Tasks:
    """Draw `num_tasks` independent tasks on r coordinates.

    `max_r` (default r, needed where r is traced) is the padded number of coordinates; `settings` are the family's own,
    as traced (parity_size: 0 for any non-empty subset, −1 for all coordinates). `common`: the key of what tasks share
    with those of another call, in families that have such (default: from `key`). `scale`: of real labels.
    Raises ValueError where a table of 2^max_r values does not fit (max_r > MAX_TABLE_R).
    """
    max_r = int(r) if max_r is None else max_r
    if FAMILIES[family].table and max_r > MAX_TABLE_R:
        raise ValueError(f"r={max_r}: {family} tasks hold a table of 2^r values; allowed: r <= {MAX_TABLE_R}")
    if FAMILIES[family].common:
        settings["common"] = keys.named(key, "common") if common is None else common
    params = FAMILIES[family].sample(key, num_tasks, r, max_r, **settings)
    real = jnp.result_type(float)
    return Tasks(family, params.astype(real), jnp.asarray(scale, real) if FAMILIES[family].real else 1.0)


def labels(tasks: Tasks, z: Float[Array, "n r"]) -> Float[Array, "n T"]:
    """Labels y_t = f_t(z), ±1 or real; of a family that reads u, which then is `z`."""
    found = FAMILIES[tasks.family].labels(tasks.params, z)
    return found * tasks.scale if FAMILIES[tasks.family].real else found


def of_inputs(tasks: Tasks, inputs: data.Inputs, r: IntLike, max_r: int) -> Float[Array, "n T"]:
    """Labels of inputs: of the orthants of s, or of u = Mᵀx, the first r coordinates of x."""
    if FAMILIES[tasks.family].signs:
        return labels(tasks, data.orthants(inputs.s, r, max_r))
    return labels(tasks, jnp.where(jnp.arange(max_r) < r, inputs.x[:, :max_r], 0))


def all_orthants(r: IntLike, max_r: int | None = None) -> Float[Array, "orthants max_r"]:
    """Every orthant in index order: in {±1}, zero in the columns from r on."""
    max_r = int(r) if max_r is None else max_r
    z = 2.0 * ((jnp.arange(2**max_r)[:, None] >> jnp.arange(max_r)) & 1) - 1
    return jnp.where(jnp.arange(max_r) < r, z, 0)


def truth_tables(tasks: Tasks, r: IntLike, max_r: int | None = None) -> Float[Array, "T orthants"]:
    """Values of each task at every orthant of max_r coordinates; orthants that r does not have are zero.

    Raises ValueError for a family whose labels are no function of the orthant.
    """
    if not FAMILIES[tasks.family].signs:
        known = ", ".join(name for name, family in FAMILIES.items() if family.signs)
        raise ValueError(f"tasks={tasks.family}: labels that vary within an orthant have no table; allowed: {known}")
    z = all_orthants(r, max_r)
    return jnp.where(jnp.arange(z.shape[0]) < 2**r, labels(tasks, z).T, 0)


def contrastive_kernel(
    tables: Float[Array, "T orthants"], num_tasks: IntLike | None = None
) -> Float[Array, "orthants orthants"]:
    """K = (1/T) Σ_t f_t f_tᵀ of truth tables. Rows of tasks from `num_tasks` on must be zero."""
    return tables.T @ tables / (tables.shape[0] if num_tasks is None else num_tasks)
